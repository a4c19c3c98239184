"""Our declaration of XLA's FFI agrees with the header of the jaxlib that is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import jax
import pytest

import jaxbind

OURS = Path(jaxbind.get_include()) / "xla_ffi.h"
THEIRS = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"

# Names that changed between releases; the layout did not. The first that exists is used.
RENAMED = {
    "JB_Extension_Base": ["XLA_FFI_InternalExtension", "XLA_FFI_Extension_Base"],
    "JB_Extension_Type": ["XLA_FFI_InternalExtension_Type", "XLA_FFI_Extension_Type"],
    "JB_ExecutionContext": ["XLA_FFI_InvokeContext", "XLA_FFI_ExecutionContext"],
    "Error_GetMessage": ["XLA_FFI_Error_GetDetails", "XLA_FFI_Error_GetMessage"],
    "JB_Error_GetMessage_Args": [
        "XLA_FFI_Error_GetDetails_Args",
        "XLA_FFI_Error_GetMessage_Args",
    ],
    "ExecutionContext_Get": ["XLA_FFI_InvokeContext_Get", "XLA_FFI_ExecutionContext_Get"],
}


# Fields at the end of a struct that older releases do not have.
NEWER = {("JB_Error_GetMessage_Args", "errc")}


def declarations(text: str) -> tuple[dict[str, list[str]], list[str]]:
    """Fields of every struct, and every enumerator, of a header in our style."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    structs = re.findall(r"^(?:typedef )?struct (JB_\w+) \{(.*?)^\}", text, flags=re.S | re.M)
    fields = {
        name: re.findall(r"(?:\(\*)?(\w+)\)?(?:\([^()]*\))?;", body) for name, body in structs
    }
    enumerators = []
    for body in re.findall(r"typedef enum \{(.*?)\}", text, flags=re.S):
        enumerators += re.findall(r"(JB_\w+) = \d+", body)
    return fields, enumerators


def theirs(name: str, header: str) -> str:
    for candidate in RENAMED.get(name, []):
        if re.search(rf"\b{candidate}\b", header):
            return candidate
    return name.replace("JB_", "XLA_FFI_", 1) if name.startswith("JB_") else name


def assertions(ours: str, header: str) -> list[str]:
    fields, enumerators = declarations(ours)
    lines = []
    for struct, names in fields.items():
        other = theirs(struct, header)
        body = re.search(rf"struct {other} \{{(.*?)^\}}", header, flags=re.S | re.M)
        assert body, other
        older = {n for n in names if (struct, n) in NEWER and not re.search(rf"\b{n};", body[1])}
        for field in [n for n in names if n not in older]:
            their_field = field
            if struct == "JB_Api" and field not in (
                "struct_size",
                "extension_start",
                "api_version",
                "internal_api",
            ):
                their_field = theirs(field, header)
                if their_field == field:
                    their_field = f"XLA_FFI_{field}"
            lines.append(
                f"_Static_assert(offsetof({struct}, {field}) == offsetof({other}, {their_field}),"
                f' "{struct}.{field}");'
            )
            lines.append(
                f"_Static_assert(sizeof((({struct}*)0)->{field}) =="
                f' sizeof((({other}*)0)->{their_field}), "{struct}.{field}");'
            )
        if struct != "JB_Api" and not older:  # the runtime's may have more functions at its end
            lines.append(f'_Static_assert(sizeof({struct}) == sizeof({other}), "{struct}");')
    for name in enumerators:
        other = theirs(name, header)
        lines.append(f'_Static_assert((int){name} == (int){other}, "{name}");')
    return lines


def compile_assertions(lines: list[str], folder: Path) -> subprocess.CompletedProcess:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    source = folder / "abi.c"
    source.write_text(
        '#include "xla_ffi.h"\n#include "xla/ffi/api/c_api.h"\n' + "\n".join(lines) + "\n"
    )
    include = [f"-I{OURS.parent}", f"-I{jax.ffi.include_dir()}"]
    return subprocess.run(
        [compiler, "-std=c11", "-fsyntax-only", *include, str(source)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_declarations_agree_with_the_installed_jaxlib(tmp_path):
    lines = assertions(OURS.read_text(), THEIRS.read_text())
    result = compile_assertions(lines, tmp_path)
    assert result.returncode == 0, result.stderr
    fields, enumerators = declarations(OURS.read_text())
    assert set(fields) == set(re.findall(r"struct (JB_\w+) \{", OURS.read_text()))
    assert len(enumerators) == len(set(re.findall(r"\b(JB_\w+) = \d", OURS.read_text()))) > 40
    assert fields["JB_CallFrame"][-1] == "future" and "State_Get" in fields["JB_Api"]


def test_a_wrong_declaration_is_found(tmp_path):
    broken = OURS.read_text().replace("  int64_t rank;\n", "  int32_t pad[3]; int64_t rank;\n")
    (tmp_path / "xla_ffi.h").write_text(broken)
    lines = assertions(OURS.read_text(), THEIRS.read_text())
    result = compile_assertions(lines, tmp_path)  # which finds the header beside its source first
    assert result.returncode != 0 and "JB_Buffer.rank" in result.stderr


def test_pxd_declares_what_the_header_declares():
    pxd = (OURS.parent / "_abi.pxd").read_text()
    fields, enumerators = declarations(OURS.read_text())
    for struct, names in fields.items():
        match = re.search(rf"ctypedef struct {struct}:\n((?:        .*\n?)+)", pxd)
        assert match, struct
        declared = re.findall(r"(\w+)(?:\)\(.*\) noexcept nogil)?$", match[1], flags=re.M)
        assert set(declared) <= set(names), struct
        if struct != "JB_Api":
            assert set(declared) == set(names), struct
    for name in enumerators:
        assert re.search(rf"\b{name}\b", pxd), name
