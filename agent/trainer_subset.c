/*
 * Subsets, as a trainer names them: a bit for each tensor that it has declared, sent once. The
 * bits are kept, for a broker that comes after this one.
 */
#include "agent/public.h"
#include "agent/trainer.h"
#include "plan/subset.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int find_tensors(const struct strew_trainer *trainer, const char *const *names, size_t n,
	uint8_t *bits, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		int64_t at = names[i] ? manifest_find(&trainer->manifest, names[i]) : -ENOENT;

		if (at < 0) {
			return error_set(err, -ENOENT,
				"subset: tensor %.128s was not declared here",
				names[i] ? names[i] : "(NULL)");
		}
		bits_set(bits, (size_t)at);
	}
	return 0;
}

/* Subset number `told + 1`, to a broker that does not know it yet; waits for the other ranks. */
static int tell(
	struct strew_trainer *trainer, const uint8_t *bits, uint64_t deadline, struct error *err)
{
	struct agent_request request = {0};
	struct message message;
	int rc;

	agent_request_begin(&trainer->session, &request);
	message_init(&message, MSG_SUBSET, request.serial);
	message.u.subset.subset = trainer->subsets_told + 1;
	message.u.subset.tensors = bits;
	message.u.subset.ntensors = bits_bytes(trainer->manifest.ntensors);
	rc = agent_session_send(&trainer->session, &message, err);
	if (rc == 0) {
		rc = agent_request_wait(&trainer->session, &request, MSG_OK, deadline, err);
	}
	agent_request_clear(&trainer->session, &request);
	if (rc == 0) {
		trainer->subsets_told++;
	}
	return rc;
}

int trainer_tell_subsets(struct strew_trainer *trainer, uint64_t deadline, struct error *err)
{
	int rc = 0;

	while (rc == 0 && trainer->subsets_told < trainer->nsubsets) {
		rc = tell(trainer, trainer->subsets[trainer->subsets_told], deadline, err);
	}
	return rc;
}

void trainer_free_subsets(struct strew_trainer *trainer)
{
	while (trainer->nsubsets) {
		free(trainer->subsets[--trainer->nsubsets]);
	}
	free(trainer->subset_late);
	trainer->subset_late = NULL;
}

/* What the broker has heard counts as soon as the other ranks have named theirs: it is too late to
 * think better of it. */
static int check_late(struct strew_trainer *trainer, const uint8_t *bits, struct error *err)
{
	if (trainer->subset_late &&
		memcmp(trainer->subset_late, bits, bits_bytes(trainer->manifest.ntensors)) != 0) {
		return error_set(err, -EINVAL,
			"subset: number %u waits for the other ranks with other tensors",
			trainer->nsubsets + 1);
	}
	return 0;
}

static int trainer_subset(struct strew_trainer *trainer, const char *const *names, size_t n,
	uint32_t *ret_subset, struct error *err)
{
	uint64_t deadline = deadline_in_ms(trainer->session.timeout_ms);
	uint8_t *bits;
	int rc;

	if (trainer->stage != TRAINER_SEALED || trainer->subsets_told < trainer->nsubsets) {
		return error_set(err, -EINVAL, "subset: nothing is sealed");
	}
	if (trainer->nsubsets == LIMIT_SUBSETS) {
		return error_set(err, -E2BIG, "subset: there are %u already", LIMIT_SUBSETS);
	}
	bits = calloc(bits_bytes(trainer->manifest.ntensors) + 1, 1);
	if (!bits) {
		return error_set(err, -ENOMEM, "no memory for a subset");
	}
	rc = agent_session_lost(&trainer->session, err);
	if (rc == 0) {
		rc = find_tensors(trainer, names, n, bits, err);
	}
	if (rc == 0) {
		rc = check_late(trainer, bits, err);
	}
	if (rc) {
		free(bits);
		return rc;
	}
	rc = tell(trainer, bits, deadline, err);
	free(trainer->subset_late);
	trainer->subset_late = rc == -ETIMEDOUT ? bits : NULL;
	if (rc) {
		free(rc == -ETIMEDOUT ? NULL : bits);
		return rc;
	}
	trainer->subsets[trainer->nsubsets++] = bits;
	*ret_subset = trainer->nsubsets;
	return 0;
}

int strew_trainer_subset(struct strew_trainer *trainer, const char *const *names, size_t nnames,
	uint32_t *ret_subset)
{
	struct error err = {0};
	int rc;

	if (!trainer || (!names && nnames) || !ret_subset) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = trainer_subset(trainer, names, nnames, ret_subset, &err);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}
