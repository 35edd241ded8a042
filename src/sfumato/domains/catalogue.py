"""The data that sfumato knows by name: what each is, on what terms, the content of its files and the ways to them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from sfumato.domains import ways as w
from sfumato.domains.cards import DataCard, NamedSource
from sfumato.domains.catalogue_arrays import ARRAYS
from sfumato.domains.catalogue_kinds import FIELDS, MOLECULES, MUSIC, TEXTS
from sfumato.domains.catalogue_sounds import SOUNDS
from sfumato.domains.catalogue_tables import TABLES
from sfumato.domains.emoji import GROUPS, open_animated, open_drawn, open_fluent, open_google, with_groups

_EMOJI = (
    "emojibase-data-17.0.0.tgz",
    ("fd3d0e864f7cb98dab0491b9ba7e8b43e46ff6b0fdfb21ce6bf3c8455c2ba537", 50_317_824),
)
_FASHION = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"


SOURCES: dict[str, NamedSource] = {
    "digits": NamedSource(
        card=DataCard(
            name="digits",
            description="1,797 handwritten digits, 8×8, grey: the test part of the UCI optical recognition set",
            licence="CC-BY-4.0 (UCI); copy in scikit-learn under BSD-3-Clause",
            origin="E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998; 43 writers, by way of NIST",
            citation="Alpaydin, E. & Kaynak, C. (1998). Optical Recognition of Handwritten Digits. "
            "UCI Machine Learning Repository. https://doi.org/10.24432/C50P49",
            count=1797,
            size=(8, 8),
            channels=1,
            classes=tuple("0123456789"),
        ),
        files={
            "digits-images-idx3-ubyte": (
                "d224a90b51e21e5d1332d34effc46c3a7d6244906f07c292c24213770d11ca7b",
                115_024,
            ),
            "digits-labels-idx1-ubyte": (
                "ce71631c1f31ce56fa54f31d1d498fafacff59b001e6c30c4a5e29508aa277ad",
                1_805,
            ),
        },
        splits={"train": ("digits-images-idx3-ubyte", "digits-labels-idx1-ubyte")},
        ways=(w.ScikitLearn("digits-images-idx3-ubyte", "digits-labels-idx1-ubyte"),),
    ),
    "fashion-mnist": NamedSource(
        card=DataCard(
            name="fashion-mnist",
            description="70,000 pictures of clothing, 28×28, grey: 60,000 to train on and 10,000 to test on",
            licence="MIT (Expat)",
            origin="Zalando Research, 2017: product photographs of Zalando's shop, reduced to 28×28 grey",
            citation="Xiao, H., Rasul, K. & Vollgraf, R. (2017). Fashion-MNIST: a Novel Image Dataset for "
            "Benchmarking Machine Learning Algorithms. arXiv:1708.07747",
            count=70_000,
            size=(28, 28),
            channels=1,
            classes=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
        ),
        files={
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                47_040_016,
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                60_008,
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                7_840_016,
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                10_008,
            ),
        },
        splits={
            "train": (_FASHION[0].format("train"), _FASHION[1].format("train")),
            "test": (_FASHION[0].format("t10k"), _FASHION[1].format("t10k")),
        },
        ways=(
            w.Installed("/usr/share/datasets/fashion-mnist"),
            w.DebianPackage("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
            w.HubTable(
                "zalando-datasets/fashion_mnist",
                (
                    ("train", _FASHION[0].format("train"), _FASHION[1].format("train")),
                    ("test", _FASHION[0].format("t10k"), _FASHION[1].format("t10k")),
                ),
            ),
        ),
    ),
    "emoji": NamedSource(
        card=DataCard(
            name="emoji",
            description="3,786 emoji, 64×64, colour, with captions; one base in ten with all its variants held out",
            licence="Apache-2.0 (Noto Emoji drawings); MIT (emoji-data, emojibase)",
            origin="Google's Noto Emoji, in emoji-datasource-google 16.0.0; names and tags of Unicode's CLDR, in "
            "emojibase-data 17.0.0",
            citation="Google LLC, Noto Emoji, https://github.com/googlefonts/noto-emoji; "
            "Unicode CLDR, https://cldr.unicode.org",
            count=3786,
            size=(64, 64),
            channels=4,
            classes=(),
        ),
        files={
            "emoji-datasource-google-16.0.0.tgz": (
                "334f58688e07d8f886f58760d1d927d322416944c498573f88e6cd648264b2ee",
                80_819_712,
            ),
            _EMOJI[0]: _EMOJI[1],
        },
        splits={"train": (), "test": ()},
        ways=(w.NpmPackage((("emoji-datasource-google", "16.0.0"), ("emojibase-data", "17.0.0"))),),
        opens=open_google,
    ),
    "emoji-3d": NamedSource(
        card=DataCard(
            name="emoji-3d",
            description="3,372 emoji, 256×256, modelled in 3D, with captions; held out as in emoji",
            licence="MIT (Fluent Emoji; emojibase)",
            origin="Microsoft's Fluent Emoji, in @lobehub/fluent-emoji-3d 1.1.0; names and tags of Unicode's CLDR, in "
            "emojibase-data 17.0.0",
            citation="Microsoft Corporation, Fluent Emoji, https://github.com/microsoft/fluentui-emoji; "
            "Unicode CLDR, https://cldr.unicode.org",
            count=3372,
            size=(256, 256),
            channels=4,
            classes=(),
        ),
        files={
            "lobehub-fluent-emoji-3d-1.1.0.tgz": (
                "054eaceced8a6edd895f074f686f7dd3a51cbf6f34c8cc955a8be6dee477f971",
                20_314_112,
            ),
            _EMOJI[0]: _EMOJI[1],
        },
        splits={"train": (), "test": ()},
        ways=(w.NpmPackage((("@lobehub/fluent-emoji-3d", "1.1.0"), ("emojibase-data", "17.0.0"))),),
        opens=open_fluent,
    ),
    "emoji-moving": NamedSource(
        card=DataCard(
            name="emoji-moving",
            description="995 emoji, 256×256, 477 of them animated, with captions; held out as in emoji",
            licence="MIT (Fluent Emoji; emojibase)",
            origin="Microsoft's Fluent Emoji, in @lobehub/fluent-emoji-anim-1 1.0.0; names and tags of Unicode's CLDR, "
            "in emojibase-data 17.0.0",
            citation="Microsoft Corporation, Fluent Emoji, https://github.com/microsoft/fluentui-emoji; "
            "Unicode CLDR, https://cldr.unicode.org",
            count=995,
            size=(256, 256),
            channels=4,
            classes=(),
        ),
        files={
            "lobehub-fluent-emoji-anim-1-1.0.0.tgz": (
                "4f7b647f334ef4998c2e8eb6d606a8b6816dac773b437c89b4821196f1de6fa4",
                166_693_376,
            ),
            _EMOJI[0]: _EMOJI[1],
        },
        splits={"train": (), "test": ()},
        ways=(w.NpmPackage((("@lobehub/fluent-emoji-anim-1", "1.0.0"), ("emojibase-data", "17.0.0"))),),
        opens=open_animated,
    ),
    **TEXTS,
    **MUSIC,
    **FIELDS,
    **ARRAYS,
    **TABLES,
    **MOLECULES,
    **SOUNDS,
}

_emoji = SOURCES["emoji"]
SOURCES["emoji-groups"] = replace(
    _emoji,
    card=replace(
        _emoji.card,
        name="emoji-groups",
        description="the emoji of the source emoji, each labelled by the group of Unicode that it belongs to",
        classes=GROUPS,
    ),
    opens=partial(with_groups, open_google),
    shelf="emoji",
)

SOURCES["emoji-styles"] = replace(
    _emoji,
    card=replace(
        _emoji.card,
        name="emoji-styles",
        description="15,201 emoji in five styles, the first those of the source emoji; its split test is theirs",
        count=15_201,
        licence="Apache-2.0 (Noto Emoji drawings); CC-BY-4.0 (Twemoji); MIT (Fluent Emoji, emoji-data, emojibase)",
        origin="Google's Noto Emoji of 2024, 2017 and 2019, in emoji-datasource-google 16.0.0, 3.0.0 and 5.0.1; "
        "Twitter's Twemoji, in emoji-datasource-twitter 16.0.0; Microsoft's Fluent Emoji, in "
        "@lobehub/fluent-emoji-3d 1.1.0; names and tags of Unicode's CLDR, in emojibase-data 17.0.0",
        citation="Google LLC, Noto Emoji, https://github.com/googlefonts/noto-emoji; Twitter, Inc and other "
        "contributors, Twemoji, https://github.com/twitter/twemoji; Microsoft Corporation, Fluent Emoji, "
        "https://github.com/microsoft/fluentui-emoji; Unicode CLDR, https://cldr.unicode.org",
    ),
    files={
        **_emoji.files,
        **SOURCES["emoji-3d"].files,
        "emoji-datasource-google-3.0.0.tgz": (
            "efb47dc70da946025cac066eb6505b83ca6081dad99c67a73490a40d33e2c0de",
            30_771_712,
        ),
        "emoji-datasource-google-5.0.1.tgz": (
            "b243a54663c23240862845ad503df046ff46d1b4194d635311bc8f8c42eff60f",
            67_730_944,
        ),
        "emoji-datasource-twitter-16.0.0.tgz": (
            "59f15dd583fe2fdedc4a868a6551d3c8750549ff3e2f688ef4df2e32dd9816de",
            68_278_272,
        ),
    },
    ways=(
        w.NpmPackage(
            (
                ("emoji-datasource-google", "16.0.0"),
                ("emoji-datasource-google", "3.0.0"),
                ("emoji-datasource-google", "5.0.1"),
                ("emoji-datasource-twitter", "16.0.0"),
                ("@lobehub/fluent-emoji-3d", "1.1.0"),
                ("emojibase-data", "17.0.0"),
            )
        ),
    ),
    opens=open_drawn,
)
