"""Whatever stands on the command line or in conf/: a Config or a ConfigError, nothing else and never a traceback."""

import shutil
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.tiny import CONF
from runner.conf.compose import compose
from runner.config import Config
from runner.errors import ConfigError

KEYS = """
experiment hardware image precision tracking seed engine optim optim.lr optim.new model training training.steps
training.batch_size schedule.kind hardware.ranks experiment.name experiment.command experiment.command.0 tracking.tags
x a.b.c image@foo hydra.run.dir hydra/launcher _target_ defaults 0
"""
VALUES = """
hello cpu h200 bf16 off 0 1 2 -1 0.5 1e9 nan inf null true [1,2] {a:1} {lr:0.1} ${seed} ${optim} ${..lr} ${.lr}
${oc.env:HOME} ${oc.create:{a:1}} ${oc.dict.keys:optim} ${ ${} ??? 'a 1,2 range(3) int(x) str(1) [ { \\ é [[[[ ../x
[{a:[1,{b:2}]}] _self_ ${hydra:} 1_000 0x10 1:30 ~ @ shuffle([1,2]) tag(a,choice(1)) glob(*)
"""
SOUND = "precision=bf16 hardware.ranks=1 seed=7 +optim.lr=0.1 +model.width=8 tracking=off training.steps=3 image=cpu"
DAMAGE = """
${ } : - ' &a *a !!int !!python/object:x [ { null ??? @ --- defaults: hydra: ~ ? # 1e400 override / | "
"""
FILES = ["config.yaml", "experiment/hello.yaml", "hardware/cpu.yaml", "tracking/wandb.yaml"]

random_words = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.sampled_from(KEYS.split()),
    st.sampled_from(["=", "=", "=", ""]),
    st.sampled_from(VALUES.split()),
)
words = st.one_of(st.sampled_from(SOUND.split()), random_words, random_words, st.text(max_size=12))
damage = st.one_of(st.sampled_from([text.encode() for text in DAMAGE.split()]), st.binary(max_size=3))
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), damage), min_size=1, max_size=3)


# Each example writes the whole folder anew, so one tmp_path serves them all.
_REUSES_TMP_PATH = [HealthCheck.function_scoped_fixture]


def outcome(conf: Path, overrides: list[str]) -> None:
    with suppress(ConfigError):
        assert isinstance(compose(conf, overrides), Config)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(overrides=st.lists(words, max_size=3))
def test_any_command_line_gives_a_config_or_one_message(overrides: list[str]) -> None:
    outcome(CONF, ["experiment=hello", *overrides])


# Each example writes the whole folder anew.
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(FILES), edits=edits)
def test_any_damage_to_a_file_gives_a_config_or_one_message(
    tmp_path: Path, name: str, edits: list[tuple[float, int, bytes]]
) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf, dirs_exist_ok=True)
    content = (conf / name).read_bytes()
    for share, removed, spliced in edits:
        place = int(share * len(content))
        content = content[:place] + spliced + content[place + removed :]
    (conf / name).write_bytes(content)
    outcome(conf, ["experiment=hello"])
