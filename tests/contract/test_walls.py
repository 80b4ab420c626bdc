"""The walls of the house: who may import whom, and where a platform or a cipher may appear."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("gateway", "crypto_svc", "nlp_svc", "reply_svc")
PACKAGES = ("assistant", *SERVICES, "plugins")
FACETS = ("codec", "crypto", "sender", "simulator", "doctor", "engine", "skill")
PLATFORMS = re.compile(r"wecom|weixin|wechat|dingtalk|feishu|lark|qyapi|企业微信|钉钉|飞书", re.IGNORECASE)
CIPHERS = re.compile(r"^(Crypto|cryptography\.hazmat\.primitives\.ciphers)(\.|$)")


def modules(*packages: str) -> list[Path]:
    found = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    return [path for path in found if not path.is_relative_to(ROOT / "assistant" / "api")]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations(paths: list[Path], forbidden: "re.Pattern[str]") -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}" for path in paths for name in imports(path) if forbidden.match(name)
    ]


def pattern(*packages: str) -> "re.Pattern[str]":
    return re.compile(rf"^({'|'.join(map(re.escape, packages))})(\.|$)")


@pytest.mark.parametrize("service", SERVICES)
def test_services_never_import_each_other(service: str) -> None:
    """A service knows the others by their contracts alone."""
    others = [other for other in SERVICES if other != service]
    assert violations(modules(service), pattern(*others, "plugins")) == []


def test_the_kernel_imports_no_service_and_no_plugin() -> None:
    """Every process shares the kernel; it shares none of them."""
    assert violations(modules("assistant"), pattern(*SERVICES, "plugins")) == []


def facet_of(path: Path) -> tuple[str, str] | None:
    """(the plugin's package, the facet) of a module within a facet."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if len(parts) < 4 or parts[0] != "plugins" or parts[3] not in FACETS:
        return None
    return ".".join(parts[:3]), parts[3]


def test_a_facet_imports_the_kernel_and_its_own_folder_only() -> None:
    """A facet's code runs only where its secret is, so it must not drag in another facet, plugin or service."""
    wrong = []
    for path in modules("plugins"):
        facet = facet_of(path)
        others = [f"{facet[0]}.{name}" for name in FACETS if name != facet[1]] if facet else []
        for name in imports(path):
            package = ".".join(path.relative_to(ROOT).parts[:3])
            foreign = within(name, "plugins") and not within(name, package) and name.count(".") >= 2
            if foreign or any(within(name, other) for other in others) or any(within(name, s) for s in SERVICES):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_ciphers_stay_where_the_keys_are() -> None:
    """Only crypto_svc and the crypto facets compute with keys; simulators play the other side."""

    def allowed(path: Path) -> bool:
        facet = facet_of(path)
        return path.is_relative_to(ROOT / "crypto_svc") or (facet is not None and facet[1] in ("crypto", "simulator"))

    assert violations([path for path in modules(*PACKAGES) if not allowed(path)], CIPHERS) == []


def test_a_simulator_shares_no_library_with_the_crypto_facet() -> None:
    """Two implementations that agree on one library's mistake prove nothing."""
    simulators = [path for path in modules("plugins") if (facet_of(path) or ("", ""))[1] == "simulator"]
    assert simulators
    assert violations(simulators, pattern("Crypto")) == []


def code_strings(path: Path) -> Iterator[tuple[int, str]]:
    """Names and string constants of a module, its docstrings left out."""
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | bare:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name | ast.Attribute | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", "")
            yield node.lineno, name


def test_no_platform_is_named_outside_its_plugin() -> None:
    """The kernel and the services know channels; which ones there are, they find out."""
    named = [
        f"{path.relative_to(ROOT)}:{line}: {text[:60]}"
        for path in modules("assistant", *SERVICES)
        for line, text in code_strings(path)
        if PLATFORMS.search(text)
    ]
    assert named == []
