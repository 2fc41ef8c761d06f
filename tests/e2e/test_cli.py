"""strew run, strew status, and what every program says about its own use."""

import json
import os
import re
import signal
import subprocess
import sys

import scene
from scene import publish

RUN = ("strew", "run", "--backend", "host")


def script(text):
    return (sys.executable, "-c", text)


def on_terminal(stage, argv, until="", keys=b""):
    """Runs a program on a terminal and types the keys when it has said something."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execve(stage.bin / argv[0], [str(arg) for arg in argv], stage.env)
    output = b""
    try:
        while until.encode() not in output:
            output += os.read(terminal, 4096)
        os.write(terminal, keys)
        while True:
            output += os.read(terminal, 4096)
    except OSError:
        pass  # the terminal's other side is closed
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode(errors="replace")


def test_run_ends_with_the_commands_code(stage):
    for code in (0, 1, 77):
        result = stage.run(*RUN, "--", "sh", "-c", f"exit {code}")
        assert result.returncode == code, result.stderr
    result = stage.run(*RUN, "--", "sh", "-c", "kill -KILL $$")
    assert result.returncode == 128 + signal.SIGKILL, result.stderr
    result = stage.run(*RUN, "--", "/nonexistent/engine")
    assert result.returncode == 127 and "/nonexistent/engine: No such file" in result.stderr
    result = stage.run(*RUN, "--", "/etc/passwd")
    assert result.returncode == 126 and "/etc/passwd: Permission denied" in result.stderr


def test_run_gives_a_private_socket(stage):
    """The command finds a live broker at $STREW_SOCKET; at the end the socket is gone."""
    text = ("import os, stat, subprocess; path = os.environ['STREW_SOCKET'];"
            "mode = os.stat(os.path.dirname(path)).st_mode;"
            "print(path, oct(stat.S_IMODE(mode)));"
            f"subprocess.run(['{stage.bin}/strew', 'status'], check=True)")
    result = stage.run(*RUN, "--", *script(text))
    assert result.returncode == 0, result.stderr
    path, mode = result.stdout.splitlines()[0].split()
    assert mode == "0o700" and "backend host" in result.stdout, result.stdout
    assert not os.path.exists(os.path.dirname(path)), path


def test_run_serves_at_a_given_socket(stage):
    path = stage.socket("given")
    result = stage.run("strew", "run", f"--sock={path}", "--backend=host", "--", "sh", "-c",
                       f"test $STREW_SOCKET = {path} && {stage.bin}/strew status")
    assert result.returncode == 0, result.stderr
    result = stage.run("strew", "run", "--socket", path, "--backend=host", "--slot", "1M", "--",
                       "sh", "-c", f"test $STREW_SOCKET = {path} && {stage.bin}/strew status "
                       f"--json --socket {path}")
    assert result.returncode == 0 and '"slot_bytes": 1048576' in result.stdout, result.stderr
    assert not path.exists()


def test_run_passes_signals_on(stage):
    text = ("import signal, sys, time\n"
            "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
            "    signal.signal(number, lambda n, _: (print('got', n, flush=True), sys.exit(n)))\n"
            "print('up!', flush=True)\n"
            "time.sleep(60)")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        launcher = stage.start(f"run-{number}", *RUN, "--", *script(text))
        launcher.says("up!").popen.send_signal(number)
        assert f"got {int(number)}" in launcher.end(int(number)), launcher.log


def test_run_interrupted_on_a_terminal(stage):
    """Ctrl-C reaches the whole foreground group: the command gets it once, the broker does not."""
    text = ("import signal, time\n"
            "count = []\n"
            "signal.signal(signal.SIGINT, lambda *_: count.append(1))\n"
            "print('up!', flush=True)\n"
            "end = time.monotonic() + 1\n"
            "while time.monotonic() < end:\n"
            "    time.sleep(0.1)\n"
            "print('count', len(count), flush=True)")
    code, output = on_terminal(stage, [*RUN, "--", *script(text)], "up!", b"\x03")
    assert code == 0, output
    assert "count 1" in output and "the broker ended" not in output, output


def test_run_starts_a_dead_broker_again(stage):
    """Killed as often as it comes back, within 5 s each time; at last the command goes on without it."""
    text = (f"import json, os, signal, subprocess, sys, time\n"
            f"for life in range(6):\n"
            f"    end = time.monotonic() + {stage.within(5)}\n"
            f"    while True:\n"
            f"        status = subprocess.run(['{stage.bin}/strew', 'status', '--json'],\n"
            f"                                capture_output=True)\n"
            f"        if status.returncode == 0: break\n"
            f"        assert time.monotonic() < end\n"
            f"        time.sleep(0.02)\n"
            f"    os.kill(json.loads(status.stdout)['pid'], signal.SIGKILL)\n"
            f"print('killed', flush=True)\n"
            f"sys.stdin.readline()\n"
            f"sys.exit(9)")
    launcher = stage.start("run", *RUN, "--", *script(text), stdin=subprocess.PIPE)
    launcher.says("goes on without it")
    launcher.line()
    launcher.end(9)
    assert launcher.log.count("the broker was ended by signal 9") == 6, launcher.log
    assert launcher.log.count("the broker serves again") == 5, launcher.log


def test_run_waits_for_a_lead_that_is_away(stage):
    """More often than a broker may die: nobody needs to be there when the lead is back."""
    port = scene.free_port()
    lead = stage.broker("lead", "--listen", f"127.0.0.1:{port}")
    launcher = stage.start("run", "strew", "run", "--backend", "host", "--slot", "256K", "--socket",
                           stage.socket(), "--join", f"127.0.0.1:{port}", "--join-timeout", "0", "--",
                           "sleep", "600")
    scene.wait_until("two brokers in one epoch", lambda: stage.joined("lead", 2))
    lead.stop()
    os.kill(stage.status()["pid"], signal.SIGKILL)
    scene.wait_until("seven lives", lambda: launcher.log.count("the broker ended with code 4") >= 7)
    stage.broker("next", "--listen", f"127.0.0.1:{port}")
    launcher.says("the broker serves again")
    scene.wait_until("two brokers in one epoch", lambda: stage.joined("next", 2))
    launcher.stop(128 + signal.SIGTERM)


def test_run_workers_outlive_brokers(stage):
    """Its broker killed between and in updates, a worker's memory is never taken for another's."""
    launcher = stage.start("run", "strew", "run", "--backend", "host", "--slot", "256K", "--socket",
                           stage.socket(), "--", "sleep", "600")
    scene.wait_until("a broker", lambda: stage.run(
        "strew", "status", "--socket", stage.socket()).returncode == 0)
    workers = stage.workers(2, "--reconnect", 60, "--check", 5)
    for version in (3, 8):
        trainer = stage.trainer("--seed", 5, "--first", version)
        scene.publish([trainer], workers, version)
        os.kill(stage.status()["pid"], signal.SIGKILL)
        for worker in workers:
            worker.says(f"registered again with version {version}, ")
        trainer.popen.wait(scene.DEADLINE_S)
        group, = stage.status()["groups"]
        assert (group["state"], group["version"]) == ("CURRENT", version), group
    scene.untouched(workers, 8)
    launcher.stop(128 + signal.SIGTERM)


def test_run_stops_the_broker_when_it_is_killed(stage):
    launcher = stage.start("run", *RUN, "--", "sh", "-c", "echo $STREW_SOCKET; sleep 2")
    launcher.says("broker.sock")
    path = next(line for line in launcher.log.splitlines() if line.endswith("broker.sock"))
    path = path.split()[-1]
    launcher.popen.kill()
    launcher.end(-signal.SIGKILL)
    scene.wait_until("the broker's end", lambda: stage.run(
        "strew", "status", "--socket", path).returncode == 4)
    os.rmdir(os.path.dirname(path))


def test_run_passes_the_brokers_failure_on(stage):
    result = stage.run("strew", "run", "--join", f"127.0.0.1:{scene.free_port()}",
                       "--join-timeout", "1", "--backend", "host", "--", "true")
    assert result.returncode == 4, (result.returncode, result.stderr)
    result = stage.run("strew", "run", "--nonsense", "--", "true")
    assert result.returncode == 2 and "nonsense" in result.stderr, result.stderr
    result = stage.run("strew", "run", "--backend", "host", "--key-file", "--", "true")
    assert result.returncode == 2 and "'--key-file' requires an argument" in result.stderr, result
    result = stage.run("strew", "run", "--backend", "host")
    assert result.returncode == 2 and "-- COMMAND" in result.stderr, result.stderr


def test_run_the_whole_job(stage):
    """Workers and trainer under one launcher, with no option about sockets anywhere."""
    config = scene.CONFIGS / "tiny-llama.json"
    worker = f"{stage.bin}/tp_worker --config {config} --model m --size 2 --check 4 --versions 1"
    text = (f"{worker} --rank 0 > {stage.dir}/w0 & first=$!\n"
            f"{worker} --rank 1 > {stage.dir}/w1 & second=$!\n"
            f"until grep -q registered {stage.dir}/w0 && grep -q registered {stage.dir}/w1; do\n"
            f"sleep 0.05; done\n"
            f"{stage.bin}/trainer --config {config} --model m --seed 4 || exit 1\n"
            f"wait $first && wait $second")
    result = stage.run(*RUN, "--slot", "64K", "--", "sh", "-c", text)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "mismatches=0" in (stage.dir / "w1").read_text()


def test_push_shows_progress_on_a_terminal(stage):
    """A bar on a terminal; elsewhere one line a fact and nothing else."""
    stage.broker(slot="8M")
    stage.workers(1)
    tensors = {f"t{i}": ("U8", [1 << 20], bytes(1 << 20)) for i in range(20)}
    path = scene.safetensors(stage.dir / "m.safetensors", tensors)
    argv = ["strew", "push", path, "--model", "m", "--version", 1, "--socket", stage.socket()]
    code, output = on_terminal(stage, argv)
    assert code == 1 and "reading [####" in output and "20.0 MiB\r\n" in output, output
    result = stage.run(*argv)
    assert result.returncode == 1 and "reading" not in result.stderr, result.stderr
    assert "read 20 tensors, 20.0 MiB" in result.stdout, result.stdout


def test_status_json(stage):
    stage.broker()
    workers = stage.workers(2, "--check", 1, "--gate", "live", "--apply", "direct")
    workers += stage.workers(2, "--check", 1, "--replica", 1, prefix="b-")[:1]
    trainer = stage.trainer("--seed", 1)
    publish([trainer], workers, 1)
    trainer.end()
    status = stage.status()
    assert status["backend"] == "host" and status["updates"] == 1 and status["aborted"] == 0
    groups = {group["replica"]: group for group in status["groups"]}
    assert set(groups) == {0, 1}
    for replica, gate, apply in ((0, "live", "direct"), (1, "held", "staged")):
        group = groups[replica]
        assert (group["model"], group["members"], group["present"]) == ("m", 2, 2), group
        assert (group["state"], group["version"]) == ("CURRENT", 1), group
        assert (group["gate"], group["apply"]) == (gate, apply), group
        assert group["raw"] > 0 and group["pull"] == 0 and group["bytes"] > 0, group
        assert group["refused"] == 0 and group["proof"] == "-", group
        assert (group["shadow_bytes"] > 0) == (apply == "staged"), group
    table = stage.run("strew", "status", "--socket", stage.socket())
    assert table.returncode == 0 and table.stderr == "", table.stderr
    for word in ("MODEL", "CURRENT", "held", "direct", "2/2", "backend host"):
        assert word in table.stdout, table.stdout


def test_status_of_an_idle_broker(stage):
    stage.broker()
    assert stage.status()["groups"] == []
    table = stage.run("strew", "status", env={"STREW_SOCKET": str(stage.socket())})
    assert table.returncode == 0 and "no workers" in table.stdout, table.stdout


def test_help_and_version(stage):
    programs = (("strew",), ("strew", "run"), ("strew", "status"), ("strew", "push"),
                ("strew", "doctor"), ("strew", "events"),
                ("strew", "explain"), ("strew", "verify"), ("strewd",),
                ("tp_worker",), ("trainer",))
    for program in programs:
        result = stage.run(*program, "--help")
        assert result.returncode == 0 and result.stderr == "", result
        assert "sage: " in result.stdout and "xample" in result.stdout, result.stdout
    for program in ("strew", "strewd"):
        result = stage.run(program, "--version")
        assert result.returncode == 0 and result.stdout.startswith(f"{program} "), result


def test_usage_errors(stage):
    """One line on stderr that names what is wrong, exit 2."""
    config = scene.CONFIGS / "tiny-llama.json"
    table = (
        (("strew",), "a subcommand"),
        (("strew", "nonsense"), "nonsense"),
        (("strew", "run"), "-- COMMAND"),
        (("strew", "run", "--"), "-- COMMAND"),
        (("strew", "run", "--socket", "/" + "x" * 200, "--", "true"), "longer than 107"),
        (("strew", "run", "--socket", "--", "true"), "has no path"),
        (("strew", "run", "--ready=7", "--", "true"), "--ready-fd"),
        (("strew", "status", "extra"), "extra"),
        (("strew", "status", "--nonsense"), "nonsense"),
        (("strew", "status", "--socket", "/" + "x" * 200), "xxx"),
        (("strew", "doctor", "extra"), "extra"),
        (("strew", "events", "extra"), "extra"),
        (("strew", "verify"), "one FILE"),
        (("strew", "explain"), "one NAME"),
        (("strew", "explain", "a", "b"), "one NAME"),
        (("strew", "explain", "x" * 512), "one NAME"),
        (("strew", "doctor", "--backend", "tpu"), "--backend tpu"),
        (("strew", "doctor", "--socket", "/" + "x" * 200), "xxx"),
        (("strew", "push"), "PATH"),
        (("strew", "push", "f", "--model", "m"), "--version"),
        (("strew", "push", "f", "--model", "m", "--version", "0"), "--version 0"),
        (("strew", "push", "f", "--model", "m", "--version", "-1"), "--version -1"),
        (("strew", "push", "f", "--model", "m", "--version", "2x"), "--version 2x"),
        (("strew", "push", "f", "--model", "m", "--version", "1", "--timeout", "0"), "--timeout"),
        (("strew", "push", "f", "g", "--model", "m", "--version", "1"), "one PATH"),
        (("strewd", "extra"), "extra"),
        (("strewd", "--backend", "tpu"), "tpu"),
        (("strewd", "--slot", "3"), "slot"),
        (("strewd", "--device", "0", "--backend", "host"), "--device 0"),
        (("strew", "status", "--limits", "--watch"), "no --watch"),
        (("strew", "status", "--limits", "--socket", "/nope"), "no --socket"),
        (("strewd", "--listen", "a:1", "--join", "b:1"), "--listen and --join"),
        (("tp_worker", "--model", "m"), "--config"),
        (("tp_worker", "--config", config, "--model", "m", "--gate", "shut"), "--gate"),
        (("trainer", "--config", config, "--model", "m", "--rank", "1"), "--rank"),
        (("trainer", "--versions", "x"), "--versions x"),
    )
    for argv, names in table:
        result = stage.run(*argv)
        assert result.returncode == 2, (argv, result)
        assert names in result.stderr and result.stderr.count("\n") == 1, (argv, result.stderr)


def test_empty_socket(stage):
    """`--socket "$UNSET"` reaches no other broker, nor does an empty $STREW_SOCKET."""
    path = scene.safetensors(stage.dir / "m.safetensors", {"t": ("U8", [4], b"1234")})
    default = {"XDG_RUNTIME_DIR": str(stage.dir)}
    (stage.dir / "strew").mkdir(mode=0o700)
    broker = stage.start("default", "strewd", "--backend", "host", env=default)
    broker.says("ready at")
    assert stage.run("strew", "status", env=default).returncode == 0
    for argv in (("status",), ("status", "--watch"), ("events",), ("explain", "t"), ("doctor",),
                 ("verify", path), ("push", path, "--model", "m", "--version", 1)):
        for args, env, said in ((("--socket", ""), {}, "path is empty"),
                                ((), {"STREW_SOCKET": ""}, "$STREW_SOCKET is empty")):
            result = stage.run("strew", *argv, *args, env={**default, **env})
            assert result.returncode == 2 and said in result.stderr, (argv, args, result)
            assert result.stderr.count("\n") == 1, result.stderr
    result = stage.run("strewd", "--backend", "host", "--socket", "", env=default)
    assert result.returncode == 2 and "path is empty" in result.stderr, result
    result = stage.run("strewd", "--backend", "host", env={**default, "STREW_SOCKET": ""})
    assert result.returncode == 2 and "$STREW_SOCKET is empty" in result.stderr, result
    result = stage.run(*RUN, "--socket", "", "--", "true", env=default)
    assert result.returncode == 2 and "--socket has no path" in result.stderr, result
    result = stage.run(*RUN, "--", "true", env={"STREW_SOCKET": ""})
    assert result.returncode == 0, result
    config = scene.CONFIGS / "tiny-llama.json"
    result = stage.run("tp_worker", "--config", config, "--model", "m", "--socket", "", env=default)
    assert result.returncode and "path is empty" in result.stderr, result


def test_demo_usage(stage):
    """What the demo cannot do it says at once, and leaves nothing behind."""
    demo = str(scene.ROOT / "scripts" / "demo.sh")
    for option, value in (("--workers", "x"), ("--workers", "65"), ("--ranks", "0"),
                          ("--versions", "0"), ("--timeout", "0"), ("--timeout", "1.5"),
                          ("--backend", "tpu"), ("--gate", "shut"), ("--apply", "")):
        result = stage.run(demo, "--no-build", "--build", stage.bin.parent, option, value,
                           env={"TMPDIR": str(stage.dir)})
        assert result.returncode == 2 and result.stderr.count("\n") == 1, (option, result)
        assert f"{option} {value}: " in result.stderr, result.stderr
    result = stage.run(demo, "--no-build", "--build", stage.dir / "absent")
    assert result.returncode == 1 and "absent: no such build folder" in result.stderr, result
    result = stage.run(demo, "--no-build", "--build", stage.dir)
    assert result.returncode == 1 and "bin/strewd is missing" in result.stderr, result
    assert not list(stage.dir.iterdir())


def test_output_ends_in_a_closed_pipe(stage):
    """`strew status | head -0` is no crash."""
    stage.broker()
    command = f"{stage.bin}/strew status --socket {stage.socket()} | true"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60,
                            check=False)
    assert result.returncode == 0 and result.stderr == "", result


def test_output_that_is_lost(stage):
    """A full disk is no success, and --watch ends."""
    stage.broker()
    stage.workers(1)
    stage.push(scene.safetensors(stage.dir / "m.safetensors", {"t": ("U8", [4], b"1234")}), 1)
    own = ("--socket", stage.socket())
    for argv in (("strew", "--help"), ("strew", "--version"), ("strew", "status", "--help"),
                 ("strew", "status", *own), ("strew", "status", "--json", *own),
                 ("strew", "status", "--watch", *own), ("strew", "status", "--limits"),
                 ("strew", "events", *own), ("strew", "explain", "model.norm.weight", *own),
                 ("strewd", "--help"), ("strewd", "--version"), ("strew-bench", "--help"),
                 ("strew-bench", "shapes", "--json", "--model",
                  scene.ROOT / "bench" / "models" / "llama-3.1-8b.json"),
                 ("strew-bench", "shapes", "--help")):
        with open("/dev/full", "wb") as full:
            result = subprocess.run([stage.bin / argv[0], *map(str, argv[1:])], stdout=full,
                                    stderr=subprocess.PIPE, text=True, env=stage.env, timeout=60,
                                    check=False)
        assert result.returncode == 1, (argv, result)
        assert result.stderr.count("\n") == 1 and "the output is lost" in result.stderr, result


def test_limits(stage):
    """Those of base/limits.h, in a table and as JSON; no broker is needed."""
    source = (scene.ROOT / "base" / "limits.h").read_text()
    wanted = {}
    for name, text in re.findall(r"#define (LIMIT_\w+)\s+(\([^)]*\)|\w+)", source):
        wanted[name] = eval(re.sub(r"(\d)(?:ull|u)\b", r"\1", text))  # pylint: disable=eval-used
    result = stage.run("strew", "status", "--limits", "--json")
    assert result.returncode == 0, result
    said = json.loads(result.stdout)
    assert len(said) > 30 and said == wanted, set(said.items()) ^ set(wanted.items())
    rows = [line.split()[:2] for line in stage.run("strew", "status", "--limits").stdout.splitlines()]
    assert rows == [[name, str(value)] for name, value in said.items()], rows


if __name__ == "__main__":
    scene.main(globals())
