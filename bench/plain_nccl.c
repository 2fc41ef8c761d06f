#include "bench/plain_nccl.h"
#include <stdlib.h>
#include <string.h>

#define READY_S 60
#define INIT_S 120
#define BROADCAST_S 600

static const uint64_t pieces[PLAIN_NCCL_LENGTHS] = {64ull << 20, 256ull << 20, 1ull << 30};
static const char *const names[PLAIN_NCCL_LENGTHS] = {
	"NCCL, 64 MiB", "NCCL, 256 MiB", "NCCL, 1 GiB"};

/* They inherit the brokers' interface, so that both are measured on the same one. */
void plain_nccl_start(
	struct plain_nccl *nccl, const char *root, const char *other, uint64_t len_bytes)
{
	setenv("NCCL_SOCKET_IFNAME", "lo", 0);
	nccl->len_bytes = len_bytes;
	for (uint32_t i = 0; i < 2; i++) {
		nccl->parts[i] = (struct part){.kind = GPU_CUDA,
			.rank = i,
			.one_gpu = bench_same_gpu(root, other),
			.buffer_bytes = MIN(len_bytes, pieces[PLAIN_NCCL_LENGTHS - 1]),
			.device = i ? other : root};
		child_start(&nccl->ranks[i], "plain NCCL", part_nccl, &nccl->parts[i]);
	}
}

void plain_nccl_stop(struct plain_nccl *nccl)
{
	child_stop(&nccl->ranks[0]);
	child_stop(&nccl->ranks[1]);
}

bool plain_nccl_there(const struct plain_nccl *nccl)
{
	return nccl->ranks[0].pid != 0;
}

/* From when both ranks were called to when both were done. */
static double broadcast(struct plain_nccl *nccl, uint64_t len_bytes, uint64_t piece_bytes)
{
	const struct broadcast question = {len_bytes, piece_bytes};
	struct letter letter;
	struct broadcast_times times;
	uint64_t start = 0, end = 0;

	/* The receiver first, so that it stands ready as a broker's does after `go`. */
	for (int i = 2; i-- > 0;) {
		child_say(&nccl->ranks[i], PART_BROADCAST, &question, sizeof(question));
	}
	for (int i = 0; i < 2; i++) {
		child_receive(&nccl->ranks[i], &letter, BROADCAST_S);
		memcpy(&times, letter.bytes, sizeof(times));
		start = MAX(start, times.start_ns);
		end = MAX(end, times.end_ns);
	}
	return (double)(end - start) * 1e-9;
}

/* Free on rank 0's GPU, when both ranks have come as far as to answer. */
static uint64_t ask_free(struct plain_nccl *nccl)
{
	uint64_t bytes = 0;
	struct letter letter;

	for (int i = 2; i-- > 0;) {
		child_ask(&nccl->ranks[i], PART_FREE, NULL, 0, &letter, READY_S);
		memcpy(&bytes, letter.bytes, sizeof(bytes));
	}
	return bytes;
}

void plain_nccl_join(struct plain_nccl *nccl)
{
	uint64_t before = ask_free(nccl), after;
	struct letter id, letter;

	child_ask(&nccl->ranks[0], PART_ID, NULL, 0, &id, READY_S);
	id.what = PART_INIT;
	for (int i = 0; i < 2; i++) {
		child_send(&nccl->ranks[i], &id);
	}
	for (int i = 0; i < 2; i++) {
		child_receive(&nccl->ranks[i], &letter, INIT_S);
	}
	broadcast(nccl, nccl->parts[0].buffer_bytes, nccl->parts[0].buffer_bytes);
	after = ask_free(nccl);
	nccl->own_bytes = (double)(before - MIN(before, after)) / (nccl->parts[0].one_gpu ? 2 : 1);
}

void plain_nccl_measure(struct plain_nccl *nccl)
{
	for (int i = 0; i < PLAIN_NCCL_LENGTHS; i++) {
		samples_add(&nccl->times[i], broadcast(nccl, nccl->len_bytes, pieces[i]));
	}
}

const struct samples *plain_nccl_best(const struct plain_nccl *nccl, const char **ret_name)
{
	int best = 0;

	for (int i = 1; i < PLAIN_NCCL_LENGTHS; i++) {
		if (samples_median(&nccl->times[i]) < samples_median(&nccl->times[best])) {
			best = i;
		}
	}
	*ret_name = names[best];
	return &nccl->times[best];
}

void plain_nccl_report(const struct plain_nccl *nccl, struct report *report)
{
	for (int i = 0; i < PLAIN_NCCL_LENGTHS; i++) {
		report_times(report, names[i], nccl->len_bytes, &nccl->times[i], NULL, NULL);
	}
}
