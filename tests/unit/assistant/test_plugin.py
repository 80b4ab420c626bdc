"""Finding and loading plugins: folders of ours, and packages that bring an entry point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from assistant import plugin
from assistant.errors import InvalidSetting, UnknownPlugin
from assistant.ports import CRYPTO, moved


def test_the_folders_of_a_kind_are_its_plugins() -> None:
    """Adding a channel is adding a folder."""
    assert {"loopback", "wecom"} <= plugin.channels().keys()
    assert "embedded" in plugin.installed("engines")
    assert "clock" in plugin.installed("skills")


@pytest.mark.parametrize("kind", ["channels", "engines", "skills"])
def test_every_plugin_has_the_name_of_its_folder_and_titles(kind: plugin.Kind) -> None:
    """What people and configurations call a plugin is where it lies."""
    for name, manifest in plugin.installed(kind).items():
        assert manifest.name == name
        assert manifest.title.keys() >= {"en", "zh-CN"}


def test_a_facet_is_loaded_by_name() -> None:
    """A process gets the class of the facet that it needs."""
    assert issubclass(plugin.load("channels", "loopback", "crypto"), plugin.Crypto)
    assert issubclass(plugin.load("engines", "embedded", "engine"), plugin.Engine)


def test_an_unknown_plugin_is_named_beside_those_that_exist() -> None:
    """A spelling mistake is mended at once."""
    with pytest.raises(UnknownPlugin, match=r"'wecon'.*loopback.*wecom"):
        plugin.load("channels", "wecon", "codec")


def test_looking_at_manifests_loads_no_facet() -> None:
    """Which channels there are is known without any code that touches a secret or the network."""
    script = (
        "import sys; from assistant import plugin; plugin.channels();"
        "print([name for name in sys.modules if name.startswith(('Crypto', 'aiohttp', 'cryptography'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_installed_package_brings_a_plugin(tmp_path: Path) -> None:
    """An entry point in our group is all that a package of others needs."""
    package = tmp_path / "acme_time"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from assistant.plugin import SkillPlugin\n"
        'manifest = SkillPlugin(name="acme", title={"en": "Acme", "zh-CN": "Acme"})\n'
    )
    (package / "skill.py").write_text("class Skill:\n    pass\n")
    installed = tmp_path / "acme_time-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-time\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[ai_assistant.skills]\nacme = acme_time:manifest\n")
    script = (
        "from assistant import plugin;"
        'print(plugin.installed("skills")["acme"].title["en"], plugin.load("skills", "acme", "skill").__module__)'
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Acme", "acme_time.skill"]


def test_one_setting_moves_all_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meshes run side by side; a setting that cannot be names itself."""
    monkeypatch.setenv("AI_ASSISTANT_PORT_OFFSET", "1000")
    assert moved(CRYPTO) == CRYPTO + 1000
    for wrong in ("many", "60000"):
        monkeypatch.setenv("AI_ASSISTANT_PORT_OFFSET", wrong)
        with pytest.raises(InvalidSetting, match=f"AI_ASSISTANT_PORT_OFFSET is '{wrong}'"):
            moved(CRYPTO)
