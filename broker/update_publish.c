/* What trainer ranks say of an update at its lead: that they publish, put, and give up. */
#include "base/util.h"
#include "broker/update_internal.h"
#include "strew/trainer.h"
#include <errno.h>
#include <string.h>

void update_init(struct update *update, uint32_t nranks)
{
	memset(update, 0, sizeof(*update));
	update->nranks = nranks;
}

static void reset(struct update *update)
{
	uint32_t nranks = update->nranks;

	update_init(update, nranks);
}

uint64_t update_put_bit(uint32_t subset)
{
	return subset ? UINT64_C(1) << (subset - 1) : 0;
}

int update_check_version(uint64_t version, uint64_t committed, struct error *err)
{
	if (version <= committed) {
		return error_set(err, -ESTALE,
			"version %llu is not above the committed version %llu",
			(unsigned long long)version, (unsigned long long)committed);
	}
	return 0;
}

int update_publish(struct update *update, uint32_t rank, const struct msg_publish *publish,
	uint64_t committed, uint64_t now, struct error *err)
{
	uint32_t timeout_ms = publish->timeout_ms ? publish->timeout_ms : LIMIT_UPDATE_MS;

	if (publish->version == UINT64_MAX) {
		return error_set(err, -ERANGE,
			"version %llu is not a version that can be published",
			(unsigned long long)publish->version);
	}
	if ((publish->flags & PUBLISH_PARTS) && !publish->subset) {
		return error_set(err, -EINVAL, "an update in parts begins with a subset");
	}
	if (update->state == UPDATE_IDLE) {
		int rc = update_check_version(publish->version, committed, err);

		if (rc) {
			return rc;
		}
		if (publish->subset && !(publish->flags & PUBLISH_PARTS) &&
			publish->base != committed) {
			return error_set(err, -ESTALE,
				"subset %u on version %llu, but version %llu was committed last",
				publish->subset, (unsigned long long)publish->base,
				(unsigned long long)committed);
		}
		reset(update);
		update->state = UPDATE_RANKS;
		update->version = publish->version;
		update->flags = publish->flags;
		update->parts = publish->flags & PUBLISH_PARTS;
		update->part = update->parts ? publish->subset : 0;
		update->put = update->parts ? update_put_bit(publish->subset) : 0;
		update->subset = update->parts ? 0 : publish->subset;
		update->base = update->parts ? 0 : publish->base;
		update->published_ns = now;
		update->deadline_ns = now + (uint64_t)timeout_ms * 1000000u;
	} else if (update->state != UPDATE_RANKS || update->published[rank]) {
		return error_set(err, -EBUSY, "version %llu is still being published",
			(unsigned long long)update->version);
	} else if (publish->version != update->version) {
		return error_set(err, -EINVAL,
			"rank %u publishes version %llu, the other ranks version %llu", rank,
			(unsigned long long)publish->version, (unsigned long long)update->version);
	} else if (publish->subset != (update->parts ? update->part : update->subset) ||
		   (publish->base != update->base && !update->parts)) {
		return error_set(err, -EINVAL,
			"rank %u publishes subset %u on version %llu, the other ranks subset %u on "
			"version %llu (0: everything)",
			rank, publish->subset, (unsigned long long)publish->base,
			update->parts ? update->part : update->subset,
			(unsigned long long)update->base);
	} else if (publish->flags != update->flags) {
		return error_set(err, -EINVAL,
			"rank %u publishes with flags 0x%x, the other ranks with 0x%x", rank,
			publish->flags, update->flags);
	}
	update->published[rank] = true;
	return 0;
}

bool update_all_done(const struct update *update)
{
	for (uint32_t i = 0; i < update->nranks; i++) {
		if (!update->done[i]) {
			return false;
		}
	}
	return true;
}

bool update_in_parts(const struct update *update, uint64_t version)
{
	return update->state >= UPDATE_RANKS && update->state <= UPDATE_PUTTING && update->parts &&
	       version == update->version;
}

int update_put(
	struct update *update, uint32_t rank, uint64_t version, uint32_t subset, struct error *err)
{
	if (!update_in_parts(update, version)) {
		return error_set(err, -ESTALE, "put: version %llu is not being published in parts",
			(unsigned long long)version);
	}
	if (update->state < UPDATE_MOVING || !update->part) {
		return error_set(err, -EBUSY, "put: %s",
			update->part ? "the part before has not begun to move"
				     : "all ranks have said that all is there");
	}
	if (update->published[rank]) {
		return error_set(
			err, -EBUSY, "put: rank %u has put subset %u already", rank, update->next);
	}
	if (update->next_said && subset != update->next) {
		return error_set(err, -EINVAL,
			"put: rank %u puts subset %u, the other ranks subset %u (0: all is there)",
			rank, subset, update->next);
	}
	if (update->put & update_put_bit(subset)) {
		return error_set(err, -EINVAL, "put: subset %u has been put already", subset);
	}
	update->next_said = true;
	update->next = subset;
	update->published[rank] = true;
	return 0;
}

bool update_stream_done(struct update *update, uint32_t rank, uint64_t now)
{
	(void)now;
	if (update->state != UPDATE_RANKS || !update->published[rank]) {
		return false;
	}
	update->done[rank] = true;
	if (!update_all_done(update)) {
		return false;
	}
	update->state = UPDATE_QUEUED;
	return true;
}

int update_check_cancel(const struct update *update, uint64_t version, struct error *err)
{
	if (!update_in_parts(update, version)) {
		return error_set(err, -ESTALE,
			"cancel: version %llu is not being published in parts",
			(unsigned long long)version);
	}
	if (update->state == UPDATE_MOVING && !update->part) {
		return error_set(err, -ESTALE, "cancel: all ranks have said that all is there");
	}
	return 0;
}
