#!/usr/bin/env bash
# The fuzzers, for long. What is found lies in the build folder, with how to see it again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
	cat <<'EOF2'
usage: scripts/fuzz.sh TARGET|all [--runs N] [--seed N] [--build DIR] [--no-build]

Builds the fuzzers with clang, AddressSanitizer and UndefinedBehaviorSanitizer, and gives each
target N inputs, mutated from tests/fuzz/corpus/TARGET and from what earlier runs in this folder
have found worth keeping. Ends at the first finding: its input is DIR/fuzz/TARGET-*; put it
into the corpus with what mends it. An input that takes over 5 s is a finding too.

  --runs N     inputs of each target (1000000)
  --seed N     of the mutations (random); one folder and seed give the same inputs again
  --build DIR  the build folder (build-fuzz)
  --no-build   what is in the build folder
  --list       the targets
EOF2
}

target='' runs=1000000 seed=$RANDOM directory=$root/build-fuzz do_build=1
while (($#)); do
	case $1 in
	--help) usage; exit 0 ;;
	--list) fuzz_targets; exit 0 ;;
	--no-build) do_build=0 ;;
	--runs | --seed | --build)
		if (($# < 2)); then
			say "fuzz.sh: $1 needs a value; see fuzz.sh --help"
			exit 2
		fi
		case $1 in
		--runs) runs=$2 ;;
		--seed) seed=$2 ;;
		--build) directory=$2 ;;
		esac
		shift ;;
	-*) say "fuzz.sh: $1: no such option; see fuzz.sh --help"; exit 2 ;;
	*) target=$1 ;;
	esac
	shift
done
if [[ $target != all ]] && ! fuzz_targets | grep -qx -- "$target"; then
	say "fuzz.sh: which target? all, or one of: $(fuzz_targets | tr '\n' ' ')"
	exit 2
fi
if ((do_build)); then
	install_needs "${build_needs[@]}" "clang clang"
	build_fuzz "$directory"
fi
for name in $(fuzz_targets); do
	if [[ $target == all || $target == "$name" ]]; then
		fuzz_run "$directory" "$name" -runs="$runs" -seed="$seed"
	fi
done
