#include "wire/carrier.h"
#include "base/clock.h"
#include "base/util.h"
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

static int check_options(const struct carrier_options *options, struct error *err)
{
	if (options->ranks == 0 || options->ranks > LIMIT_BROKERS ||
		options->rank >= options->ranks) {
		return error_set(err, -EINVAL, "rank %u of %u is no place in an epoch",
			options->rank, options->ranks);
	}
	if (options->ranks > 1 && options->kind != CARRIER_NCCL && options->kind != CARRIER_TCP) {
		return error_set(
			err, -EINVAL, "%u brokers with carrier %d", options->ranks, options->kind);
	}
	return 0;
}

int carrier_create(const struct carrier_options *options, uint64_t deadline,
	const atomic_int *cancel, struct carrier **ret_carrier, struct error *err)
{
	struct carrier *carrier;
	int rc = check_options(options, err);

	if (rc) {
		return rc;
	}
	carrier = calloc(1, sizeof(*carrier));
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
	if (options->ret_given && carrier->kind != CARRIER_NONE) {
		*options->ret_given = true;
	}
	*ret_carrier = carrier;
	return 0;
}

int carrier_broadcast(struct carrier *carrier, const struct carrier_part *parts, size_t nparts,
	uint32_t root, struct gpu_stream *stream, uint64_t deadline, const atomic_int *cancel,
	struct error *err)
{
	int rc = 0;

	if (root >= carrier->ranks) {
		return error_set(
			err, -EINVAL, "broker %u of %u cannot be a root", root, carrier->ranks);
	}
	if (carrier->broken) {
		return error_set(err, -EIO, "the carrier broke at an earlier bucket");
	}
	if (carrier->kind == CARRIER_NCCL) {
		rc = carrier_nccl_broadcast(
			carrier, parts, nparts, root, stream, deadline, cancel, err);
	} else if (carrier->kind == CARRIER_TCP) {
		for (size_t i = 0; i < nparts && rc == 0; i++) {
			rc = carrier_tcp_broadcast(carrier, parts[i].address, parts[i].len_bytes,
				root, deadline, cancel, err);
		}
	}
	/* Half a bucket may be on its way: what follows it would be read as its rest. */
	carrier->broken = rc != 0;
	return rc;
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
		/* A broken one has a broadcast that may never be done. */
		rc = carrier_nccl_destroy(carrier, abort || carrier->broken);
	} else if (carrier->kind == CARRIER_TCP) {
		carrier_tcp_destroy(carrier);
	}
	free(carrier);
	return rc;
}
