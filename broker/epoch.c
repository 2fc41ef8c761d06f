/*
 * The lead's brokers and their communicator.
 *
 *   NONE ─a broker joined or was lost, or the carrier broke─► GATHERING
 *   GATHERING ─a moment has passed, no update runs─► TELLING ─all have taken what they were
 *       told of models─► NAMING ─unique id─► MAKING
 *   MAKING ─every member's communicator is warm─► READY
 *   TELLING, MAKING ─deadline, or a failure─► who is at fault (blame.c) is dropped, GATHERING
 *   NAMING ─deadline─► GATHERING
 *
 * The manifests of all models may be a thousand times what a socket takes. They have a deadline of
 * their own, so that who reads them is not late for the communicator.
 *
 * With no other broker there is no communicator: NAMING ends the last one, and
 * the state is NONE. Updates begin in NONE and READY only. A broker that is
 * dropped joins again by itself.
 */
#include "broker/epoch.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/alive.h"
#include "broker/waits.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LAST_WORD_MS 500 /* from the first failure of a making to its end */

void epoch_gather(struct server *server, uint32_t at_least_ms)
{
	struct epoch *epoch = &server->epoch;
	uint64_t until = deadline_in_ms(at_least_ms);

	if (epoch->state == EPOCH_MAKING || epoch->state == EPOCH_NAMING) {
		atomic_store(&epoch->job.cancel, 1);
	}
	/* Who is dropped by mistake is waited for, also if others come first. */
	epoch->deadline = epoch->state == EPOCH_GATHERING ? MAX(epoch->deadline, until) : until;
	epoch->state = EPOCH_GATHERING;
}

void epoch_changed(struct server *server)
{
	epoch_gather(server, LIMIT_GATHER_MS);
}

void epoch_fails_soon(struct server *server)
{
	server->epoch.failing = true;
	server->epoch.deadline = MIN(server->epoch.deadline, deadline_in_ms(LAST_WORD_MS));
}

/* The mover ends a call that does not return by the broker's end; this counts from when it begins,
 * as what is queued before it may take longer. */
static uint32_t job_limit_ms(void)
{
	return waits.epoch_ms + waits.hung_ms;
}

static void end_ready(struct server *server)
{
	struct epoch *epoch = &server->epoch;

	epoch->state = EPOCH_READY;
	missed_stand(server);
	log_info("epoch %llu stands: %u brokers, %s", (unsigned long long)epoch->number,
		epoch->ranks, epoch->carrier == CARRIER_NCCL ? "NCCL" : "TCP");
	blame_none(server);
	lead_ready(server);
}

void epoch_check_ready(struct server *server)
{
	struct epoch *epoch = &server->epoch;

	if (epoch->state != EPOCH_MAKING || !epoch->own_ready) {
		return;
	}
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH && !member->ready) {
			return;
		}
	}
	end_ready(server);
}

/* It is nobody else's: the mover was at something else for long, or NCCL has not even begun. */
static bool is_own_fault(const struct job_epoch *work)
{
	return work->began_ns + waits.epoch_ms * 500000ull > work->deadline ||
	       (work->carrier.kind == CARRIER_NCCL && !work->given);
}

/* Our own part has failed, or was given up. */
static void own_failed(struct server *server, const struct job_epoch *work)
{
	if (is_own_fault(work)) {
		epoch_gather(server, REGATHER_MS);
	} else if (deadline_passed(server->epoch.deadline)) {
		blame_making(server);
	} else {
		epoch_fails_soon(server);
	}
}

void epoch_made(struct job *job)
{
	struct job_epoch *work = (struct job_epoch *)job;
	struct server *server = work->data;
	struct epoch *epoch = &server->epoch;

	epoch->job_running = false;
	/* If there is a carrier for them, it has taken the descriptors, never the array. */
	for (uint32_t i = 0; work->carrier.data_fds && i < work->carrier.ranks; i++) {
		if (job->rc || work->carrier.kind != CARRIER_TCP) {
			fd_close(&work->carrier.data_fds[i]);
		}
	}
	free(work->carrier.data_fds);
	if (work->given) {
		server_count_epoch(server);
	}
	if (!server_is_lead(server)) {
		join_epoch_made(server, work);
		return;
	}
	if (job->rc && job->rc != -ECANCELED) {
		log_warn("epoch %llu: %s", (unsigned long long)epoch->number, job->err.text);
	}
	if (epoch->state == EPOCH_NAMING && epoch->ranks == 1) {
		epoch->state = EPOCH_NONE;
		lead_ready(server);
	} else if (epoch->state == EPOCH_MAKING) {
		if (job->rc) {
			own_failed(server, work);
			return;
		}
		epoch->own_ready = true;
		log_info("communicator of epoch %llu was made in %.1f ms",
			(unsigned long long)epoch->number, (double)work->elapsed_ns / 1e6);
		epoch_check_ready(server);
	}
}

/* Hands the making of a communicator to the mover. Takes data_fds. */
void epoch_submit(struct server *server, const struct msg_epoch *said, int *data_fds)
{
	struct job_epoch *work = &server->epoch.job;

	memset(work, 0, sizeof(*work));
	work->job.run = job_epoch_run;
	work->job.done = epoch_made;
	work->job.limit_ms = job_limit_ms();
	work->moves = server->moves;
	work->carrier.kind = said->ranks > 1 ? (enum carrier_kind)said->carrier : CARRIER_NONE;
	work->carrier.epoch = said->epoch;
	work->carrier.rank = said->rank;
	work->carrier.ranks = said->ranks;
	memcpy(work->carrier.unique_id, said->unique_id, sizeof(work->carrier.unique_id));
	work->carrier.data_fds = data_fds;
	work->deadline = deadline_in_ms(waits.epoch_ms);
	work->data = server;
	server->epoch.job_running = true;
	mover_submit(server->mover, &work->job);
}

/* Begins our own part once every data connection is there (NCCL needs none). */
void epoch_try_submit(struct server *server)
{
	struct epoch *epoch = &server->epoch;
	struct msg_epoch said = {.epoch = epoch->number,
		.ranks = epoch->ranks,
		.carrier = epoch->carrier,
		.slot_bytes = epoch->slot_bytes};
	int *fds;

	if (epoch->state != EPOCH_MAKING || epoch->job_running || epoch->own_submitted) {
		return;
	}
	for (struct member *member = server->members; member; member = member->next) {
		if (epoch->carrier == CARRIER_TCP && member->state == MEMBER_IN_EPOCH &&
			member->data_fd < 0) {
			return;
		}
	}
	fds = malloc(epoch->ranks * sizeof(*fds));
	if (!fds) {
		server_fatal(server, "out of memory");
		return;
	}
	for (uint32_t i = 0; i < epoch->ranks; i++) {
		struct member *member = i ? member_by_rank(server, i) : NULL;

		fds[i] = member ? fd_take(&member->data_fd) : -1;
	}
	memcpy(said.unique_id, epoch->unique_id, sizeof(said.unique_id));
	epoch->own_submitted = true;
	epoch_submit(server, &said, fds);
}

static void send_epoch(struct server *server)
{
	struct epoch *epoch = &server->epoch;
	struct message message;

	epoch->state = EPOCH_MAKING;
	epoch->own_ready = epoch->own_submitted = epoch->failing = false;
	epoch->made_from = clock_ns();
	epoch->deadline = deadline_in_ms(waits.epoch_ms);
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state != MEMBER_IN_EPOCH) {
			continue;
		}
		message_init(&message, MSG_EPOCH, 0);
		message.u.epoch.epoch = epoch->number;
		message.u.epoch.rank = member->rank;
		message.u.epoch.ranks = epoch->ranks;
		message.u.epoch.carrier = epoch->carrier;
		message.u.epoch.slot_bytes = epoch->slot_bytes;
		message.u.epoch.brokers = epoch->brokers;
		message.u.epoch.nbrokers = epoch->ranks;
		memcpy(message.u.epoch.unique_id, epoch->unique_id, UNIQUE_ID_BYTES);
		memcpy(message.u.epoch.token, epoch->token, TOKEN_BYTES);
		member_send(member, &message);
	}
	epoch_try_submit(server);
}

struct id_job {
	struct job job;
	struct server *server;
	uint64_t epoch;
	uint8_t id[UNIQUE_ID_BYTES];
};

static void run_id(struct job *job)
{
	struct id_job *work = (struct id_job *)job;

	job->rc = nccl_unique_id(work->id, &job->err);
}

static void id_made(struct job *job)
{
	struct id_job *work = (struct id_job *)job;
	struct server *server = work->server;
	struct epoch *epoch = &server->epoch;

	epoch->job_running = false;
	if (epoch->state == EPOCH_NAMING && epoch->number == work->epoch) {
		if (job->rc) {
			server_fatal(server, job->err.text);
		} else {
			memcpy(epoch->unique_id, work->id, sizeof(work->id));
			send_epoch(server);
		}
	}
	free(work);
}

static void make_id(struct server *server)
{
	struct id_job *work = calloc(1, sizeof(*work));

	if (!work) {
		server_fatal(server, "out of memory");
		return;
	}
	work->job.run = run_id;
	work->job.done = id_made;
	work->job.limit_ms = job_limit_ms();
	work->server = server;
	work->epoch = server->epoch.number;
	server->epoch.job_running = true;
	mover_submit(server->mover, &work->job);
}

static void send_manifests(struct member *member)
{
	for (struct model *model = member->server->models; model; model = model->next) {
		lead_send_manifest(model, member);
	}
}

static void name_epoch(struct server *server)
{
	struct epoch *epoch = &server->epoch;
	struct msg_epoch alone = {.ranks = 1};

	epoch->state = EPOCH_NAMING;
	epoch->deadline = deadline_in_ms(waits.epoch_ms);
	if (random_bytes(epoch->token, sizeof(epoch->token))) {
		server_fatal(server, "no random numbers from the kernel");
	} else if (epoch->ranks == 1) {
		epoch_submit(server, &alone, NULL);
	} else if (epoch->carrier == CARRIER_NCCL) {
		make_id(server);
	} else {
		send_epoch(server);
	}
}

static bool all_told(const struct server *server)
{
	for (const struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH && conn_wants_write(member->conn)) {
			return false;
		}
	}
	return true;
}

static void epoch_start(struct server *server)
{
	struct epoch *epoch = &server->epoch;

	epoch->number++;
	epoch->ranks = 1;
	epoch->rank = 0;
	epoch->brokers[0] = server->broker_id;
	epoch->slot_bytes = server->options.slot_bytes;
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_CONNECTED) {
			continue;
		}
		if (member->state == MEMBER_JOINED) {
			/* Not before: an update that runs meanwhile would be missed unsaid. */
			lead_send_committed(member);
			send_manifests(member);
		}
		member->state = MEMBER_IN_EPOCH;
		member->rank = epoch->ranks++;
		epoch->brokers[member->rank] = member->join.broker_id;
		member->ready = false;
		fd_close(&member->data_fd);
		epoch->slot_bytes = MIN(epoch->slot_bytes, member->join.slot_bytes);
	}
	epoch->carrier = epoch->ranks == 1			   ? CARRIER_NONE
			 : gpu_info(server->gpu)->kind == GPU_CUDA ? CARRIER_NCCL
								   : CARRIER_TCP;
	epoch->state = EPOCH_TELLING;
	epoch->made_from = clock_ns();
	epoch->deadline = deadline_in_ms(waits.epoch_ms);
}

static bool may_start(const struct server *server)
{
	return server->epoch.state == EPOCH_GATHERING && !lead_busy(server) &&
	       server->node.stage == NODE_IDLE && !server->epoch.job_running;
}

void epoch_tick(struct server *server, uint64_t now)
{
	struct epoch *epoch = &server->epoch;

	for (struct member *member = server->members, *next; member; member = next) {
		next = member->next;
		member_tick(member, now);
	}
	if (now >= epoch->deadline && may_start(server)) {
		epoch_start(server);
	}
	if (epoch->state == EPOCH_TELLING && all_told(server)) {
		name_epoch(server);
	} else if (now < epoch->deadline) {
		return;
	} else if (epoch->state == EPOCH_NAMING) {
		/* If a call of it hangs the watchdog ends us, and else it is done some time. */
		log_warn("epoch %llu: the mover did not come to its name in time",
			(unsigned long long)epoch->number);
		epoch_changed(server);
	} else if (epoch->state == EPOCH_TELLING ||
		   (epoch->state == EPOCH_MAKING && !epoch->job_running)) {
		blame_making(server);
	} else if (epoch->state == EPOCH_MAKING && epoch->failing) {
		/* Our own part would wait for its own deadline; its end is what comes next. */
		epoch->failing = false;
		atomic_store(&epoch->job.cancel, 1);
	}
}

uint64_t epoch_due(const struct server *server)
{
	const struct epoch *epoch = &server->epoch;
	uint64_t due = UINT64_MAX;

	if (may_start(server) || epoch->state == EPOCH_TELLING || epoch->state == EPOCH_NAMING ||
		(epoch->state == EPOCH_MAKING && (!epoch->job_running || epoch->failing))) {
		due = epoch->deadline;
	}
	for (const struct member *member = server->members; member; member = member->next) {
		due = MIN(due, member->state == MEMBER_CONNECTED ? member->deadline
								 : alive_due(member->conn));
	}
	return due;
}
