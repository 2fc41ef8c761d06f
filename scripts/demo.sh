#!/usr/bin/env bash
# The main job, end to end: a trainer's new weights into live workers, as separate processes.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
	cat <<'EOF'
usage: scripts/demo.sh [options]

Starts brokers, the tensor-parallel workers of one group and a trainer as separate processes,
publishes versions, and compares every byte of every worker with what it should be.

  --backend auto|cuda|host  memory of GPUs or of the host (auto: GPUs if there are any)
  --model CONFIG.json       shapes to use (a small Llama)
  --checkpoint FILE         push this safetensors file of a BERT instead (config.json beside it)
  --workers N               tensor-parallel ranks (2)
  --ranks N                 trainer ranks (1), which hold a part of every tensor each; of two
                            brokers each gets every other one
  --versions N              how many to publish (3)
  --malloc                  trainer and every other worker in ordinary memory, which libstrew copies
  --gate held|live          (held)
  --apply staged|direct     (staged)
  --slot SIZE               length of a broker's slots (256K for the small model)
  --timeout SECONDS         how long each thing that is waited for may take (60)
  --key                     a random key for the brokers
  --no-build                use the programs that are in the build folder
  --build DIR               the build folder (build)

Ends with the line "demo: ok versions=3 workers=2 tensors=N bytes=B mismatches=0" and exit 0.
Without a GPU it runs two brokers as two nodes; with GPUs first one broker, then two.
EOF
}

backend=auto model=$root/examples/configs/tiny-llama.json checkpoint=''
workers=2 ranks=1 versions=3 gate=held apply=staged slot='' timeout=60 key=0 do_build=1 malloc=0
build=$root/build

while (($#)); do
	case $1 in
	--help) usage; exit 0 ;;
	--no-build) do_build=0; shift; continue ;;
	--malloc) malloc=1; shift; continue ;;
	--key) key=1; shift; continue ;;
	--backend | --model | --checkpoint | --workers | --ranks | --versions | --gate | --apply | --slot | \
		--timeout | --build)
		if (($# < 2)); then
			say "demo.sh: $1 needs a value; see demo.sh --help"
			exit 2
		fi ;;
	*) say "demo.sh: $1: no such option; see demo.sh --help"; exit 2 ;;
	esac
	printf -v "${1#--}" '%s' "$2"
	shift 2
done

# Before anything is built or started.
one_of() {
	local option=$1 word

	for word in "${@:2}"; do
		[[ ${!option} != "$word" ]] || return 0
	done
	say "demo.sh: --$option ${!option}: one of ${*:2} is wanted; see demo.sh --help"
	exit 2
}

number() {
	local option=$1 most=$2

	if [[ ! ${!option} =~ ^[1-9][0-9]{0,5}$ ]] || ((${!option} > most)); then
		say "demo.sh: --$option ${!option}: a number from 1 to $most is wanted; see demo.sh --help"
		exit 2
	fi
}

one_of backend auto cuda host
one_of gate held live
one_of apply staged direct
number workers 64
number ranks 256
number versions 100000
number timeout 3600
if [[ -z $slot && $model == */examples/configs/* && -z $checkpoint ]]; then
	slot=256K # several buckets even for a small model
fi
if [[ -n $checkpoint ]]; then
	versions=1
	model=$(dirname "$checkpoint")/config.json
	[[ -r $checkpoint ]] || die "demo.sh: $checkpoint: no such file"
	[[ -r $model ]] || die "demo.sh: $model: the checkpoint's config is not beside it"
fi
[[ -r $model ]] || die "demo.sh: $model: no such file"

if ((do_build)); then
	install_needs "${build_needs[@]}"
	if [[ -e $build/CMakeCache.txt ]]; then
		build "$build"
	else
		build "$build" -DSTREW_TESTS=OFF
	fi
fi
[[ -d $build ]] || die "demo.sh: $build: no such build folder: leave out --no-build"
bin=$(cd "$build" && pwd)/bin
for program in strewd strew tp_worker trainer; do
	[[ -x $bin/$program ]] || die "demo.sh: $bin/$program is missing: build first"
done

gpus() {
	local devices=(/dev/nvidia[0-9]*)

	if [[ $backend == host || ! -e ${devices[0]} ]]; then
		echo 0
	elif command -v nvidia-smi >/dev/null; then
		nvidia-smi -L | grep -c '^GPU' || true
	else
		echo "${#devices[@]}"
	fi
}

# Everything below runs in a folder of its own, which stays if something goes wrong.
work=$(mktemp -d "${TMPDIR:-/tmp}/strew-demo.XXXXXX")
declare -A pids=() codes=()

stop_all() {
	local name

	for name in "${!pids[@]}"; do
		kill "${pids[$name]}" 2>/dev/null || true
	done
	for _ in {1..50}; do
		jobs -pr | grep -q . || break
		sleep 0.1
	done
	for name in "${!pids[@]}"; do
		kill -KILL "${pids[$name]}" 2>/dev/null || true
	done
	wait 2>/dev/null || true
}

finish() {
	local code=$? log

	trap - EXIT
	stop_all
	if ((code)); then
		for log in "$work"/*/*.log; do
			[[ -e $log ]] || continue
			say "--- $log"
			tail -n 15 "$log" >&2
		done
		say "demo: failed; everything it left is in $work"
	else
		rm -rf "$work"
	fi
	exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap '' PIPE
trap 'exit 143' TERM

# start NAME COMMAND…: in the background, its output in $dir/NAME.log.
start() {
	local name=$1

	shift
	"$@" <&0 >"$dir/$name.log" 2>&1 &
	pids[$name]=$!
}

# Moves processes that have ended from pids to codes. An end that is no success ends the demo.
look_after() {
	local name code

	for name in "${!pids[@]}"; do
		if ! kill -0 "${pids[$name]}" 2>/dev/null; then
			code=0
			wait "${pids[$name]}" || code=$?
			unset "pids[$name]"
			codes[$name]=$code
			((code == 0)) || die "demo: $name ended with code $code"
		fi
	done
}

# wait_for WHAT COMMAND…: until the command succeeds.
wait_for() {
	local what=$1 end=$((SECONDS + timeout))

	shift
	until "$@"; do
		((SECONDS < end)) || die "demo: no sign of \"$what\" within $timeout s"
		look_after
		sleep 0.05
	done
}

ended() {
	[[ -n ${codes[$1]:-} ]]
}

said() {
	grep -q -- "$1" "$dir/$2.log"
}

# Below the ports that the system gives out by itself, and used by nobody now.
free_port() {
	local port

	while :; do
		port=$((20000 + RANDOM % 12000))
		grep -qi ":$(printf %04x "$port") " /proc/net/tcp /proc/net/tcp6 2>/dev/null ||
			break
	done
	echo "$port"
}

# joined N: the lead's epoch has N brokers and carries buckets.
joined() {
	local status

	status=$("$bin/strew" status --json --socket "$dir/lead.sock" 2>/dev/null) || return 1
	[[ $(grep -c '"name":' <<<"$status") == "$1" ]] || return 1
	! grep -q '"carrier": "none"' <<<"$status"
}

# start_broker NAME ENVIRONMENT… -- OPTIONS…
start_broker() {
	local name=$1 environment=()

	shift
	while [[ $1 != -- ]]; do
		environment+=("$1")
		shift
	done
	shift
	start "$name" env "${environment[@]}" "$bin/strewd" --socket "$dir/$name.sock" \
		--backend "$backend" ${slot:+--slot "$slot"} "$@"
	wait_for "$name serves" test -S "$dir/$name.sock"
}

# One or two brokers; sets worker_socket.
start_brokers() {
	local brokers=$1 gpus=$2 port device=() key_file=()

	if ((brokers == 1)); then
		start_broker lead --
		worker_socket=$dir/lead.sock
		return
	fi
	if ((key)); then
		(umask 077 && head -c 32 /dev/urandom >"$dir/key")
		key_file=(--key-file "$dir/key")
	fi
	port=$(free_port)
	# On one host, NCCL would take the two brokers for two ranks of one node.
	export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo}
	# One GPU stands for two nodes by different host ids; with two, NCCL takes their link.
	local lead=(NCCL_HOSTID=strew-demo-lead) node=(NCCL_HOSTID=strew-demo-node)
	if ((gpus > 1)); then
		lead=() node=() device=(--device 1)
	fi
	start_broker lead "${lead[@]}" -- --listen "127.0.0.1:$port" "${key_file[@]}"
	start_broker node "${node[@]}" -- --join "127.0.0.1:$port" "${device[@]}" "${key_file[@]}"
	worker_socket=$dir/node.sock
	wait_for "two brokers in one epoch" joined 2
}

start_workers() {
	local gpus=$1 rank options

	for ((rank = 0; rank < workers; rank++)); do
		options=(--config "$model" --model demo --rank "$rank" --size "$workers"
			--gate "$gate" --apply "$apply" --versions "$versions"
			--socket "$worker_socket")
		if ((malloc && rank % 2 == 0)); then
			options+=(--malloc)
		elif ((gpus)); then
			options+=(--device "$((rank % gpus))")
		fi
		if [[ -n $checkpoint ]]; then
			options+=(--dump "$dir/worker$rank.dump")
		else
			options+=(--check 7)
		fi
		start "worker$rank" "$bin/tp_worker" "${options[@]}"
	done
	for ((rank = 0; rank < workers; rank++)); do
		wait_for "worker $rank registered" said "registered" "worker$rank"
	done
}

# A trainer publishes when it is told to, so that each version is looked at before the next.
train() {
	local gpus=$1 version rank fd sockets=("$dir/lead.sock" "$worker_socket") go=() memory=()

	if ((malloc)); then
		memory=(--malloc)
	elif ((gpus)); then
		memory=(--device 0)
	fi
	for ((rank = 0; rank < ranks; rank++)); do
		mkfifo "$dir/go$rank"
		exec {fd}<>"$dir/go$rank" # both ends, or opening would wait for the other one
		go+=("$fd")
		start "trainer$rank" "$bin/trainer" --config "$model" --model demo --seed 7 \
			--by-line --versions "$versions" --rank "$rank" --ranks "$ranks" \
			--socket "${sockets[rank % 2]}" --timeout "$timeout" "${memory[@]}" \
			<"$dir/go$rank"
	done
	for ((version = 1; version <= versions; version++)); do
		for ((rank = 0; rank < ranks; rank++)); do
			echo >&"${go[rank]}" || true # a trainer that is gone is seen below
		done
		for ((rank = 0; rank < ranks; rank++)); do
			wait_for "version $version" said "version $version committed" "trainer$rank"
		done
		for ((rank = 0; rank < workers; rank++)); do
			wait_for "version $version in worker $rank" \
				said "version $version ok" "worker$rank"
		done
	done
	for ((rank = 0; rank < ranks; rank++)); do
		fd=${go[rank]}
		exec {fd}>&-
		wait_for "the end of trainer $rank" ended "trainer$rank"
	done
}

push() {
	"$bin/strew" push "$checkpoint" --model demo --version 1 --socket "$dir/lead.sock" \
		--timeout "$timeout" >"$dir/push.log" 2>&1 ||
		die "demo: strew push failed: $(tail -n 1 "$dir/push.log")"
}

# run_demo NAME BROKERS GPUS: all of it once; adds to bytes and mismatches, sets tensors.
run_demo() {
	local name=$1 rank line numbers

	dir=$work/$name
	codes=()
	mkdir "$dir"
	say "demo: $name"
	start_brokers "$2" "$3"
	start_workers "$3"
	if [[ -n $checkpoint ]]; then
		push
	else
		train "$3"
	fi
	for ((rank = 0; rank < workers; rank++)); do
		wait_for "the end of worker $rank" ended "worker$rank"
	done
	for line in node lead; do
		if [[ -n ${pids[$line]:-} ]]; then
			kill "${pids[$line]}"
			wait_for "the end of $line" ended "$line"
		fi
	done
	if [[ -n $checkpoint ]]; then
		numbers=$(python3 "$root/tests/e2e/checkpoint.py" "$checkpoint" "$model" \
			"$dir"/worker*.dump) || die "demo: the workers do not have the checkpoint: $numbers"
		tensors=$(sed -n 's/.*tensors=\([0-9]*\).*/\1/p' <<<"$numbers")
	else
		numbers=$(cat "$dir"/worker*.log)
		tensors=$(sed -n 's/.* tensors=\([0-9]*\).*/\1/p' "$dir/trainer0.log" | tail -n 1)
	fi
	numbers=$(awk '/mismatches=/ {
		for (i = 1; i <= NF; i++) {
			split($i, pair, "=")
			sum[pair[1]] += pair[2]
		}
	} END { printf "%d %d\n", sum["bytes"], sum["mismatches"] }' <<<"$numbers")
	bytes=$((bytes + ${numbers% *}))
	mismatches=$((mismatches + ${numbers#* }))
}

bytes=0 mismatches=0 tensors=0 dir='' worker_socket=''
gpus=$(gpus)
if ((gpus == 0)); then
	[[ $backend == cuda ]] && die "demo.sh: --backend cuda: there is no GPU here"
	run_demo "two-brokers-host" 2 0
else
	run_demo "one-broker" 1 "$gpus"
	run_demo "two-brokers" 2 "$gpus"
fi
((bytes > 0 && mismatches == 0)) || die "demo: $mismatches of $bytes bytes are wrong"
stop_all
echo "demo: ok versions=$versions workers=$workers tensors=$tensors bytes=$bytes mismatches=$mismatches"
