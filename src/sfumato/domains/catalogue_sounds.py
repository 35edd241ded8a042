"""The sounds that sfumato knows by name."""

from __future__ import annotations

from sfumato.domains import ways as w
from sfumato.domains.cards import DataCard, NamedSource

SOUNDS: dict[str, NamedSource] = {
    "sonic-pi": NamedSource(
        card=DataCard(
            name="sonic-pi",
            description="165 sounds for making music with, in 14 groups such as bass, drum and tabla",
            licence="CC0-1.0",
            origin="samples of Sonic Pi, collected from freesound.org, in Debian's sonic-pi-samples 3.2.2",
            citation="Aaron, S. (2012-2020). Sonic Pi, the live coding music synth. https://sonic-pi.net",
            count=165,
            kind="sounds",
        ),
        files={
            "sonic-pi-samples_3.2.2~repack-8_all.deb": (
                "25f2312d2fae005e6ad0f4726b8ed3084e776006a5a132083506e960224ac79d",
                21_882_696,
            )
        },
        splits={"train": ("usr/share/sonic-pi/samples", "_")},
        ways=(w.DebianPackage("sonic-pi-samples", ""),),
    ),
    "asterisk": NamedSource(
        card=DataCard(
            name="asterisk",
            description="558 spoken prompts of a telephone exchange, one speaker, 25 minutes, 8 kHz",
            licence="CC-BY-SA-3.0",
            origin="spoken by Allison Smith for Asterisk, in Debian's asterisk-core-sounds-en-wav 1.6.1",
            citation="Digium, Inc. and Allison Smith (2003-2010). Asterisk core sounds, English",
            count=558,
            kind="sounds",
        ),
        files={
            "asterisk-core-sounds-en-wav_1.6.1-1_all.deb": (
                "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
                18_272_864,
            )
        },
        splits={"train": ("usr/share/asterisk/sounds/en_US_f_Allison",)},
        ways=(w.DebianPackage("asterisk-core-sounds-en-wav", ""),),
    ),
}
