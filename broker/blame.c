/*
 * Whose fault it was that a communicator was not made, and who may join after that.
 *
 * NCCL does not say who was missing. So the fault is looked for, in this order, with those
 *
 *   who say so themselves: it was their own call that failed, and not another's absence;
 *   who have not taken what the lead had to tell them first;
 *   (TCP) who have not made their data connection;
 *   who are not ready and have come since the last epoch that stood;
 *   who are not ready.
 *
 * They are dropped, and nobody else is: the others, who were in an epoch that stood, have their
 * workers in the next one. How long each is kept out is trust.c's. Where it may have been several,
 * they come back one by one, then two at a time, then four; who was among them by mistake is in an
 * epoch soon, and who was not spoils the making for the one or two beside it.
 */
#include "base/clock.h"
#include "base/log.h"
#include "broker/epoch.h"
#include "broker/waits.h"
#include <errno.h>
#include <stdio.h>

enum fault { NOT_TOLD, NOT_CONNECTED, NEWCOMER, NOT_READY };

static bool is_at_fault(const struct member *member, enum fault fault)
{
	const struct epoch *epoch = &member->server->epoch;

	if (member->state != MEMBER_IN_EPOCH || member->ready) {
		return false;
	}
	if (epoch->state == EPOCH_TELLING) {
		return fault == NOT_TOLD && conn_wants_write(member->conn);
	}
	if (fault == NOT_TOLD) {
		return false;
	}
	if (fault == NOT_CONNECTED) {
		return epoch->carrier == CARRIER_TCP && !epoch->own_submitted &&
		       member->data_fd < 0;
	}
	return fault == NOT_READY || !member->stood;
}

static size_t count_at_fault(const struct server *server, enum fault fault)
{
	size_t n = 0;

	for (struct member *member = server->members; member; member = member->next) {
		n += is_at_fault(member, fault);
	}
	return n;
}

static void put_on_list(struct member *member, bool sure)
{
	struct epoch *epoch = &member->server->epoch;
	uint64_t now = clock_ns();

	member->judged = true;
	trust_failed(&epoch->trust, &member->join, sure, now - epoch->made_from, now);
}

void blame_making(struct server *server)
{
	bool timed_out = clock_ns() - server->epoch.made_from >= waits.epoch_ms * 1000000ull;
	enum fault fault = NOT_TOLD;
	struct member *next;
	bool sure;
	size_t n;

	while (!(n = count_at_fault(server, fault)) && fault < NOT_READY) {
		fault++;
	}
	/* What fails at once may be our own fault, and what has stood was not at fault then. */
	sure = fault <= NOT_CONNECTED || (fault == NEWCOMER && n == 1 && timed_out);
	if (!sure && n > 1) {
		server->epoch.suspects_most = 1;
	}
	for (struct member *member = server->members; member; member = member->next) {
		if (is_at_fault(member, fault)) {
			put_on_list(member, sure);
		}
	}
	for (struct member *member = server->members; member; member = next) {
		next = member->next;
		if (member->judged) {
			member_drop(member,
				fault == NOT_TOLD ? "it did not take the models' manifests in time"
						  : "it did not make its communicator in time");
		}
	}
	epoch_gather(server, REGATHER_MS);
}

int blame_word(struct member *member, const struct msg_epoch_ready *said, struct error *err)
{
	struct server *server = member->server;
	int code = error_from_wire(said->code);

	if (code == -ETIMEDOUT || code == -ECONNRESET || code == -ECANCELED ||
		(member->stood && count_at_fault(server, NEWCOMER))) {
		log_info("broker %s: %s", member->join.name, said->text);
		epoch_fails_soon(server);
		return 0;
	}
	put_on_list(member, true);
	return error_set(err, -EIO, "it could not make its communicator: %.180s", said->text);
}

void blame_lost(struct member *member, bool sure)
{
	enum epoch_state state = member->server->epoch.state;

	/* Where we have ended it ourselves, for want of room or memory, it is not the member's. */
	if ((state == EPOCH_TELLING || state == EPOCH_MAKING) && member->state == MEMBER_IN_EPOCH &&
		!member->stood && !member->judged && !conn_gave_up(member->conn)) {
		put_on_list(member, sure);
	}
}

void blame_none(struct server *server)
{
	struct epoch *epoch = &server->epoch;

	for (struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH) {
			member->stood = true;
			trust_stands(&epoch->trust, &member->join);
		}
	}
	epoch->suspects_most *= 2;
	if (epoch->suspects_most >= LIMIT_BROKERS) {
		epoch->suspects_most = 0;
	}
}

static size_t count_suspects(struct server *server, uint64_t now)
{
	size_t n = 0;

	for (struct member *member = server->members; member; member = member->next) {
		n += member->state != MEMBER_CONNECTED && !member->stood &&
		     trust_until(&server->epoch.trust, &member->join, now);
	}
	return n;
}

int blame_admits(struct server *server, const struct msg_join *join, struct error *err)
{
	struct epoch *epoch = &server->epoch;
	uint64_t now = clock_ns(), until = trust_until(&epoch->trust, join, now);

	if (!until) {
		return 0;
	}
	if (now < until) {
		return error_set(err, -EBUSY,
			"broker %s has spoilt the making of a communicator: it may join again "
			"in %llu s",
			join->name, (unsigned long long)((until - now) / 1000000000u + 1));
	}
	if (epoch->suspects_most && count_suspects(server, now) >= epoch->suspects_most) {
		return error_set(err, -EBUSY,
			"broker %s may have spoilt the making of a communicator: others that "
			"may have go first",
			join->name);
	}
	return 0;
}
