#include "wire/carrier.h"
#include "base/clock.h"
#include "wire/carrier_ops.h"
#include <errno.h>
#include <stdlib.h>

int carrier_waiting(
	uint64_t deadline, const atomic_int *cancel, const char *what, struct error *err)
{
	if (cancel && atomic_load(cancel)) {
		return error_set(err, -ECANCELED, "%s was given up", what);
	}
	if (deadline_passed(deadline)) {
		return error_set(err, -ETIMEDOUT, "%s did not end before its deadline", what);
	}
	return 0;
}

int carrier_create(const struct carrier_options *options, uint64_t deadline,
	const atomic_int *cancel, struct carrier **ret_carrier, struct error *err)
{
	struct carrier *carrier = calloc(1, sizeof(*carrier));
	int rc = 0;

	if (!carrier) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	carrier->kind = options->ranks > 1 ? options->kind : CARRIER_NONE;
	carrier->epoch = options->epoch;
	carrier->rank = options->rank;
	carrier->ranks = options->ranks;
	if (carrier->kind == CARRIER_NCCL) {
		rc = carrier_nccl_create(carrier, options, deadline, cancel, err);
	} else if (carrier->kind == CARRIER_TCP) {
		rc = carrier_tcp_create(carrier, options, deadline, cancel, err);
	}
	if (rc) {
		free(carrier);
		return rc;
	}
	*ret_carrier = carrier;
	return 0;
}

int carrier_broadcast(struct carrier *carrier, uint64_t address, uint64_t len_bytes, uint32_t root,
	struct gpu_stream *stream, uint64_t deadline, const atomic_int *cancel, struct error *err)
{
	if (carrier->kind == CARRIER_NCCL) {
		return carrier_nccl_broadcast(
			carrier, address, len_bytes, root, stream, deadline, cancel, err);
	}
	if (carrier->kind == CARRIER_TCP) {
		return carrier_tcp_broadcast(
			carrier, address, len_bytes, root, deadline, cancel, err);
	}
	return 0;
}

int carrier_poll(struct carrier *carrier, struct error *err)
{
	return carrier->kind == CARRIER_NCCL ? carrier_nccl_poll(carrier, err) : 0;
}

int carrier_destroy(struct carrier *carrier, bool abort)
{
	int rc = 0;

	if (!carrier) {
		return 0;
	}
	if (carrier->kind == CARRIER_NCCL) {
		rc = carrier_nccl_destroy(carrier, abort);
	} else if (carrier->kind == CARRIER_TCP) {
		carrier_tcp_destroy(carrier);
	}
	free(carrier);
	return rc;
}
