# shellcheck shell=bash
# What demo.sh and test.sh share: where things are, what must be installed, and building.
# Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() {
	printf '%s\n' "$*" >&2
}

die() {
	say "$*"
	exit 1
}

# What is looked for ("command", "header.h" or "libFuzzer") and the Debian or Ubuntu package that has it;
# where a package was renamed, the first name that the archive knows is taken.
# shellcheck disable=SC2034
build_needs=(
	"cc build-essential"
	"cmake cmake"
	"ninja ninja-build"
	"pkg-config pkg-config"
	"msgpack.h libmsgpack-c-dev libmsgpack-dev"
	"xxhash.h libxxhash-dev"
	"jansson.h libjansson-dev"
	"liburing.h liburing-dev"
	"sodium.h libsodium-dev"
	"python3 python3"
)
# shellcheck disable=SC2034
test_needs=(
	"cmocka.h libcmocka-dev"
	"clang clang"
	"clang-format clang-format"
)

has() {
	case $1 in
	*.h) command -v cc >/dev/null && printf '#include <stdarg.h>\n#include <stddef.h>\n#include <setjmp.h>\n#include <stdint.h>\n#include <%s>\n' "$1" |
		cc -E - >/dev/null 2>&1 ;;
	ensurepip) python3 -c 'import ensurepip' 2>/dev/null ;;
	libFuzzer) [[ -e $(clang -print-file-name="libclang_rt.fuzzer-$(uname -m).a") ]] ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

# The first of the given names that apt knows, else the last.
package_of() {
	local name

	for name in "$@"; do
		if apt-cache show "$name" >/dev/null 2>&1; then
			break
		fi
	done
	printf '%s\n' "$name"
}

# install_needs LINES…: installs what is missing where that is allowed, else says what to install.
install_needs() {
	local line sudo=() missing=() names=() words

	for line in "$@"; do
		has "${line%% *}" || missing+=("$line")
	done
	if ((${#missing[@]} == 0)); then
		return 0
	fi
	for line in "${missing[@]}"; do
		names+=("${line##* }")
	done
	if ! command -v apt-get >/dev/null; then
		die "missing: install what these Debian packages have, then run this again: ${names[*]}"
	fi
	if ((EUID != 0)); then
		sudo=(sudo -n)
		if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
			die "missing; run this, then this script again: apt-get install ${names[*]}"
		fi
	fi
	say "installing ${names[*]}"
	export DEBIAN_FRONTEND=noninteractive
	"${sudo[@]}" apt-get update -q >&2
	names=()
	for line in "${missing[@]}"; do
		read -ra words <<<"$line"
		names+=("$(package_of "${words[@]:1}")")
	done
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
		--no-install-recommends "${names[@]}" >&2
	for line in "${missing[@]}"; do
		has "${line%% *}" || die "${line%% *} is still missing after the installation"
	done
}

# build DIRECTORY CMAKE-OPTIONS…: configures and builds; fine to repeat.
build() {
	local directory=$1 generator=()

	shift
	if [[ ! -e $directory/CMakeCache.txt ]]; then
		generator=(-G Ninja)
	fi
	if command -v ccache >/dev/null; then
		set -- "$@" -DCMAKE_C_COMPILER_LAUNCHER=ccache
	fi
	cmake -S "$root" -B "$directory" "${generator[@]}" "$@" >&2
	cmake --build "$directory" --parallel "$(nproc)" >&2
}

fuzz_targets() {
	find "$root/tests/fuzz" -name 'fuzz_*.c' -printf '%f\n' | sed 's/^fuzz_\(.*\)\.c$/\1/' | sort
}

# libFuzzer belongs to clang, in a package of its own or in one of clang's, by the version.
install_fuzzer() {
	local major

	major=$(clang -dumpversion)
	major=${major%%.*}
	install_needs "libFuzzer libclang-rt-$major-dev libclang-common-$major-dev"
}

# build_fuzz DIRECTORY: the fuzzers alone.
build_fuzz() {
	install_fuzzer
	CC=clang build "$1" -DSTREW_WERROR=ON -DSTREW_FUZZ=ON "-DCMAKE_C_FLAGS_RELWITHDEBINFO=-O1 -g"
}

# fuzz_run DIRECTORY TARGET LIBFUZZER-OPTIONS…: inputs worth keeping go to DIRECTORY/corpus/TARGET.
fuzz_run() {
	local directory=$1 target=$2 log code=0

	shift 2
	log=$directory/fuzz/$target.log
	mkdir -p "$directory/corpus/$target"
	say "fuzz $target $*"
	"$directory/fuzz/fuzz_$target" "$@" -timeout=5 -rss_limit_mb=2048 -max_len=4096 \
		-print_final_stats=1 -artifact_prefix="$directory/fuzz/$target-" \
		"$directory/corpus/$target" "$root/tests/fuzz/corpus/$target" >"$log" 2>&1 || code=$?
	if ((code)); then
		grep -v -e '^#' "$log" | tail -n 80 >&2
		say "fuzz $target: a finding; see $log"
		return 1
	fi
	sed -n 's/^stat::\(number_of_executed_units\|average_exec_per_sec\):\s*/  \1 /p' "$log" >&2
}
