"""How good is it: measures with intervals and floors, what they cost, receipts for them, and a report.

    measure   `Measure`: a number, its interval, its floor          metrics   Fréchet, kernel, score, agreement
    manifold  precision, recall, density, coverage                  copying   nearest neighbours against held-out
    features  what the metrics look at                              evaluate  all of it, from a sample function
    cost      calls, FLOPs, seconds, memory                         receipts  how to compute a number again
    report    one HTML file                                         plots     PNG figures in one style
    trace     what each step of sampling does                       study     where a sample's error comes from
    directions  what may be changed in a picture, without labels    attribution  where a network looks at a word

Import from the modules: nothing heavy is loaded here.
"""
