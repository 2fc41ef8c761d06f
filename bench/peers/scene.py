"""What the tests of the comparison share: a scratch folder, small models, and how they are run.

A test is a function test_X(scene) in a file that ends with scene.main(globals()):

    python3 test_Y.py BIN [X...]

Exit code 77: all of them were skipped.
"""

import contextlib
import importlib.util
import io
import json
import pathlib
import random
import shutil
import stat
import sys
import tempfile
import textwrap
import traceback

import compare
import shapes

CONFIG = {"model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 48, "head_dim": 4,
          "moe_intermediate_size": 8, "num_experts": 4, "num_hidden_layers": 2, "vocab_size": 40,
          "num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": False}
DENSE = {**CONFIG, "model_type": "qwen2"}
RANDOM = random.SystemRandom()


class Skip(Exception):
    pass


class Scene:
    def __init__(self, programs):
        self.bin = programs
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="strew-peers-test-"))

    def config(self, config):
        path = self.dir / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    def shapes(self, config, tp):
        return shapes.parse(shapes.load(self.bin, self.config(config), 0, tp))

    def program(self, name, text):
        """An executable Python script."""
        path = self.dir / name
        path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def compare(self, *args):
        """(exit code, standard output) of compare.py in this process; its children are real."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            try:
                code = compare.main([str(arg) for arg in args])
            except SystemExit as end:
                code = end.code
        return code, out.getvalue()


def need_torch():
    if importlib.util.find_spec("torch") is None:
        raise Skip("no PyTorch")


def raises(kind, function, *args, has=""):
    try:
        function(*args)
    except kind as error:
        assert has in str(error), f"{error!r} does not say {has!r}"
        return error
    raise AssertionError(f"no {kind.__name__} from {function.__name__}{args[:1]}")


def main(names):
    tests = {name[5:]: value for name, value in names.items() if name.startswith("test_")}
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} BIN [{'|'.join(tests)}]...")
    results = []
    for name in sys.argv[2:] or tests:
        scene = Scene(sys.argv[1])
        try:
            tests[name](scene)
            results.append("ok")
        except Skip as reason:
            results.append(f"skipped: {reason}")
        except Exception:  # pylint: disable=broad-except
            traceback.print_exc()
            results.append("FAILED")
        finally:
            shutil.rmtree(scene.dir, ignore_errors=True)
        print(f"{name}: {results[-1]}", flush=True)
    sys.exit(1 if "FAILED" in results else 77 if all(r != "ok" for r in results) else 0)
