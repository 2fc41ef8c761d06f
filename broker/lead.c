/*
 * The lead: what trainers declare and publish, and the carrying out of what
 * update.c decides. One update is between begin and report at a time
 * (server->active); others wait in QUEUED.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/roots.h"
#include "broker/server.h"
#include "strew/trainer.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool lead_busy(const struct server *server)
{
	return server->active != NULL;
}

/* To the ranks of this broker. */
static void send_trainers(struct model *model, struct message *message)
{
	for (uint32_t i = 0; i < model->ranks; i++) {
		if (model->seats[i].client) {
			struct message copy = *message;

			client_send(model->seats[i].client, &copy);
		}
	}
}

/* To those of other brokers. One that is taken for lost may still move: it hears from its own
 * broker, when that is quiet. */
static void send_members_ranks(struct model *model, const struct message *report)
{
	for (uint32_t i = 0; i < model->ranks; i++) {
		struct seat *seat = &model->seats[i];

		if (seat->member && (seat->member->state != MEMBER_IN_EPOCH ||
					    !model->update.lost[seat->member->rank])) {
			member_report(seat, report);
		}
	}
}

static const char *outcome_word(enum strew_outcome outcome)
{
	return outcome == STREW_OUTCOME_COMMITTED ? "committed"
	       : outcome == STREW_OUTCOME_SAT_OUT ? "committed in part"
	       : outcome == STREW_OUTCOME_LOST	  ? "committed, and lost"
						  : "aborted";
}

/* The group array is the update's, so the message is not finished. */
static void send_report(struct server *server, struct model *model)
{
	struct update *update = &model->update;
	const struct publication *publication = model_publication(model, update->subset);
	struct msg_report *report;
	struct message message;

	message_init(&message, MSG_REPORT, 0);
	report = &message.u.report;
	report->version = update->version;
	report->outcome = update->outcome;
	string_copy(report->text, sizeof(report->text), update->text);
	if (publication) {
		report->tensors = publication->manifest.ntensors;
		report->bytes = manifest_bytes(&publication->manifest);
	}
	report->unwanted = update->unwanted == UINT64_MAX ? report->tensors : update->unwanted;
	report->wire_bytes = server->node.wire_bytes;
	report->stages = update->stages;
	report->total_ns = update->ended_ns - update->published_ns;
	if (update->begun_ns) {
		report->wait_ns = update->begun_ns - update->published_ns;
	}
	if (update->accepted_ns) {
		report->accept_ns = update->accepted_ns - update->begun_ns;
	}
	if (update->moved_ns) {
		report->move_ns = update->moved_ns - update->accepted_ns;
		report->commit_ns = update->ended_ns - update->moved_ns;
	}
	report->groups = update->groups;
	report->ngroups = update->ngroups;
	send_trainers(model, &message);
	send_members_ranks(model, &message);
	history_lead(server, model->name, report);
	server->updates++;
	server->aborted += update->outcome == STREW_OUTCOME_ABORTED;
	log_info("model %s version %llu: %s%s%s, %.2f ms (accept %.2f, move %.2f, commit %.2f)",
		model->name, (unsigned long long)update->version, outcome_word(update->outcome),
		update->text[0] ? ": " : "", update->text, (double)report->total_ns / 1e6,
		(double)report->accept_ns / 1e6, (double)report->move_ns / 1e6,
		(double)report->commit_ns / 1e6);
}

static void send_members(struct server *server, struct message *message)
{
	for (struct member *member = server->members; member; member = member->next) {
		if (member->state == MEMBER_IN_EPOCH) {
			struct message copy = *message;

			member_send(member, &copy);
		}
	}
}

static void do_begin(struct server *server, struct model *model, uint32_t *roots)
{
	struct update *update = &model->update;
	const struct publication *publication = model_publication(model, update->subset);
	uint64_t now = clock_ns(), base;
	struct message message;
	struct msg_begin begin;

	memset(&begin, 0, sizeof(begin));
	begin.roots = roots;
	begin.nroots = publication->nroots;
	begin.epoch = server->epoch.number;
	begin.update = update->serial;
	string_copy(begin.model, sizeof(begin.model), model->name);
	begin.version = update->version;
	begin.manifest_hash = publication->hash;
	begin.subset = update->subset;
	begin.base = update->base;
	/* Always: what is begun is what a commit will have brought. */
	base = brought_begin(model);
	seen_await(server, model, now);
	if (!update->subset && (update->flags & STREW_PUBLISH_PARTIAL)) {
		begin.base = base;
	}
	begin.slot_bytes = server->epoch.slot_bytes;
	begin.flags = update->flags;
	begin.timeout_ms = update->deadline_ns > now
				   ? (uint32_t)((update->deadline_ns - now) / 1000000u) + 1
				   : 1;
	message_init(&message, MSG_BEGIN, 0);
	message.u.begin = begin;
	send_members(server, &message);
	node_begin(server, &begin);
}

/* Does a group there need buckets of a root elsewhere? */
static bool needs_wire(const struct server *server, const struct group_outcome *group)
{
	const struct node *node = &server->node;

	for (size_t i = 0; node->publication && i < node->publication->nroots; i++) {
		if (node->roots[i] != group->node) {
			return true;
		}
	}
	return false;
}

/* Does this go move anything? The one that closes an update in parts does not. */
static bool moves_now(const struct update *update)
{
	return !(update->flags & PUBLISH_PARTS) || update->part;
}

/* What a broker must remember for the time after this update: arrays of the message. */
struct go_lists {
	uint32_t met[LIMIT_REPORT_GROUPS];
	struct group_name own[LIMIT_GROUPS];
};

static void fill_lists(const struct update *update, struct go_lists *lists, struct msg_decision *go)
{
	go->met = lists->met;
	go->nmet = update->ngroups;
	go->own = lists->own;
	for (size_t i = 0; i < update->ngroups; i++) {
		const struct group_outcome *group = &update->groups[i];

		lists->met[i] = group->replica;
		if (group->node == 0 && group->outcome == STREW_OUTCOME_NONE &&
			go->nown < LIMIT_GROUPS) {
			lists->own[go->nown++] = (struct group_name){group->replica, group->part};
		}
	}
	/* Half a replica is not alone: it must not catch up, ahead of the other half. */
	for (size_t i = 0; i < update->nawaited && go->nmet < LIMIT_REPORT_GROUPS; i++) {
		const struct group_awaited *awaited = &update->awaited[i];

		if (update_awaits(update, awaited->replica, awaited->part)) {
			lists->met[go->nmet++] = awaited->replica;
		}
	}
}

static void send_decision(struct server *server, struct model *model, enum message_type type)
{
	struct update *update = &model->update;
	struct go_lists lists;
	struct message message;

	message_init(&message, type, 0);
	message.u.decision.epoch = server->epoch.number;
	message.u.decision.update = update->serial;
	if (type == MSG_ABORT) {
		string_copy(message.u.decision.text, sizeof(message.u.decision.text), update->text);
	} else {
		message.u.decision.replicas = update->replicas;
		message.u.decision.nreplicas = update->nreplicas;
	}
	for (size_t i = 0; i < update->ngroups && type == MSG_GO; i++) {
		const struct group_outcome *group = &update->groups[i];

		if (group->outcome == STREW_OUTCOME_NONE && needs_wire(server, group)) {
			message.u.decision.wire = 1;
		}
	}
	if (type == MSG_GO) {
		message.u.decision.slot_types = update->slot_types.runs;
		message.u.decision.nslot_types = update->slot_types.n;
		message.u.decision.part = update->part;
		fill_lists(update, &lists, &message.u.decision);
		message.u.decision.hash = message.u.decision.wire && moves_now(update) &&
					  (update->hash || (update->flags & STREW_PUBLISH_HASH));
		server->wire_used = server->wire_used || message.u.decision.wire;
		server->hash_used = message.u.decision.hash;
		lead_hashes_forget(server);
	}
	send_members(server, &message);
	/* Ours last: its answer may come at once, and end the update. */
	if (type == MSG_GO) {
		node_go(server, &message.u.decision);
	} else if (type == MSG_COMMIT) {
		brought_commit(model, update->version);
		seen_commit(server, model);
		model->committed = update->version;
		model->decided = true;
		node_commit(server, &message.u.decision);
	} else {
		node_abort(server, update->serial, update->text);
	}
}

static void do_report(struct server *server, struct model *model)
{
	send_report(server, model);
	if (server->active == model) {
		server->active = NULL;
		lead_hashes_forget(server);
		server->hash_used = false;
		/* After an abort nobody knows what is still in the carrier: a new one is made. */
		if (model->update.outcome == STREW_OUTCOME_ABORTED && server->wire_used) {
			epoch_changed(server);
		}
		server->wire_used = false;
		/* Else every later update would wait for them too. */
		members_drop_lost(server, model->update.lost);
		recalls_settle(server);
	}
	model_try_seal(server, model);
}

static void lead_do(struct server *server, struct model *model, unsigned actions)
{
	struct message message;

	if (actions & UPDATE_DO_RELEASE) {
		message_init(&message, MSG_RELEASED, 0);
		message.u.released.version = model->update.version;
		send_trainers(model, &message);
	}
	if (actions & UPDATE_DO_REPORT) {
		do_report(server, model);
	}
	if (actions & UPDATE_DO_GO) {
		send_decision(server, model, MSG_GO);
	}
	if (actions & UPDATE_DO_COMMIT) {
		send_decision(server, model, MSG_COMMIT);
	}
	if (actions & UPDATE_DO_ABORT) {
		send_decision(server, model, MSG_ABORT);
	}
}

/* A worker or a broker that came since may have brought a later version. */
static bool end_overtaken(struct server *server, struct model *model)
{
	unsigned actions = update_overtaken(&model->update, model->committed, clock_ns());

	lead_do(server, model, actions);
	return actions != 0;
}

/* One that cannot begin at all ends. */
static bool may_begin(struct server *server, struct model *model, uint32_t ret_roots[LIMIT_RANKS])
{
	struct update *update = &model->update;
	const struct publication *publication = model_publication(model, update->subset);
	bool all = update->flags & STREW_PUBLISH_SCOPE_ALL;
	const char *missed;
	struct error err;

	if (update->state != UPDATE_QUEUED || !publication) {
		return false;
	}
	if (end_overtaken(server, model)) {
		return false;
	}
	missed = missed_name(server, clock_ns());
	if (missed && all) {
		lead_do(server, model, update_missed(update, missed, clock_ns()));
		return false;
	}
	if (all && missed_come_back(server)) {
		return false;
	}
	if (roots_find(server, publication, ret_roots, &err)) {
		lead_do(server, model, update_give_up(update, err.text, clock_ns()));
		return false;
	}
	return true;
}

void lead_ready(struct server *server)
{
	uint32_t roots[LIMIT_RANKS], nodes = 1;

	if (lead_busy(server) || server->node.stage != NODE_IDLE || server->draining ||
		(server->epoch.state != EPOCH_NONE && server->epoch.state != EPOCH_READY)) {
		return;
	}
	for (struct member *member = server->members; member; member = member->next) {
		nodes += member->state == MEMBER_IN_EPOCH;
	}
	for (struct model *model = server->models; model; model = model->next) {
		if (may_begin(server, model, roots)) {
			if (!catchup_yield(server, model->name,
				    is_whole(model->update.flags, model->update.subset))) {
				return; /* in the next round */
			}
			server->active = model;
			server->node.wire_bytes = 0;
			if (update_begin(&model->update, ++server->next_serial, nodes, clock_ns()) &
				UPDATE_DO_BEGIN) {
				do_begin(server, model, roots);
			}
			return;
		}
	}
}

void lead_stream_done(struct server *server, struct model *model, uint32_t rank)
{
	if (model->update.state > UPDATE_QUEUED) {
		lead_do(server, model, update_put_done(&model->update, rank));
	} else if (update_stream_done(&model->update, rank, clock_ns())) {
		lead_ready(server);
	}
}

static void stream_done(struct watch *watch)
{
	struct client *client = watch->data;

	if (client->model) {
		lead_stream_done(client->server, client->model, client->session.trainer.rank);
	}
}

#define PUBLISH_KNOWN (STREW_PUBLISH_PARTIAL | STREW_PUBLISH_SCOPE_ALL | STREW_PUBLISH_HASH)
_Static_assert(!(PUBLISH_PARTS & PUBLISH_KNOWN), "a flag for two things");

int publish_check(const struct msg_publish *publish, struct error *err)
{
	if (publish->flags & ~(PUBLISH_KNOWN | PUBLISH_PARTS)) {
		return error_set(err, -ENOTSUP, "publish: a flag that this broker does not know");
	}
	if (publish->timeout_ms > LIMIT_UPDATE_MAX_MS) {
		return error_set(err, -ERANGE, "publish: the timeout passes one hour");
	}
	return 0;
}

int lead_take_publish(
	struct model *model, uint32_t rank, const struct msg_publish *publish, struct error *err)
{
	int rc = publish_check(publish, err);

	if (rc) {
		return rc;
	}
	if (!model->publication) {
		return error_set(err, -EBUSY,
			"publish: not every rank of the trainer has declared its tensors");
	}
	if (!model_publication(model, publish->subset)) {
		return error_set(err, -ENOENT,
			"publish: not every rank of the trainer has named subset %u",
			publish->subset);
	}
	return update_publish(&model->update, rank, publish, model->committed, clock_ns(), err);
}

void lead_publish(struct client *client, const struct message *message)
{
	const struct msg_publish *publish = &message->u.publish;
	struct error err;
	int rc = lead_take_publish(client->model, client->session.trainer.rank, publish, &err);

	if (rc) {
		client_error(client, message->serial, rc, err.text);
		return;
	}
	client_ok(client, message->serial, 0);
	client_watch(client, WORD_PUBLISH, publish->word, stream_done);
}

void lead_put(struct client *client, const struct message *message)
{
	const struct msg_put *put = &message->u.put;
	struct model *model = client->model;
	struct error err;
	int rc;

	if (model->update.state == UPDATE_MOVING && !model->update.released) {
		rc = error_set(&err, -EBUSY, "put: the part before is still being read");
	} else {
		rc = lead_take_put(
			model, client->session.trainer.rank, put->version, put->subset, &err);
	}
	if (rc) {
		client_error(client, message->serial, rc, err.text);
		return;
	}
	client_ok(client, message->serial, 0);
	client_watch(client, WORD_PUBLISH, put->word, stream_done);
}

void lead_rank_cancels(struct server *server, struct model *model, uint32_t rank, uint64_t version,
	const char *where, const char *why)
{
	lead_do(server, model,
		update_cancel(&model->update, rank, version, where, why, clock_ns()));
}

void lead_cancel(struct client *client, const struct message *message)
{
	const struct msg_cancel *cancel = &message->u.cancel;
	struct model *model = client->model;
	struct error err;
	int rc = update_check_cancel(&model->update, cancel->version, &err);

	if (rc) {
		client_error(client, message->serial, rc, err.text);
		return;
	}
	client_ok(client, message->serial, 0);
	lead_rank_cancels(client->server, model, client->session.trainer.rank, cancel->version, "",
		cancel->text);
}

/* Is it the answer to the go that is out, and the node's first? */
static bool is_due(const struct update *update, uint32_t node, enum message_type type,
	const struct msg_groups *answer)
{
	return update->state == UPDATE_MOVING && answer->update == update->serial &&
	       (type == MSG_MOVED) == (update->part != 0) && node < update->nnodes &&
	       !update->answered[node] && !update->lost[node];
}

void lead_answer(struct server *server, uint32_t node, enum message_type type,
	const struct msg_groups *answer)
{
	struct model *model = server->active;
	uint64_t now = clock_ns();
	unsigned actions = 0;

	if (!model || answer->epoch != server->epoch.number || end_overtaken(server, model)) {
		return;
	}
	if (type == MSG_ACCEPT) {
		actions = update_accept(&model->update, node, answer, now);
	} else if (type == MSG_MOVED || type == MSG_PREPARED) {
		struct msg_groups judged = *answer;

		if (server->hash_used && !answer->code &&
			is_due(&model->update, node, type, answer) &&
			!lead_hashes_agree(server, model, node, answer, judged.text)) {
			judged.code = error_to_wire(-EBADMSG);
			log_error("version %llu at node %u: %s",
				(unsigned long long)model->update.version, node, judged.text);
		}
		actions = type == MSG_MOVED ? update_moved(&model->update, node, &judged, now)
					    : update_prepared(&model->update, node, &judged, now);
	} else if (type == MSG_APPLIED) {
		actions = update_applied(&model->update, node, answer, now);
	}
	lead_do(server, model, actions);
}

void lead_released(struct server *server, uint64_t serial)
{
	struct model *model = server->active;

	if (model && model->update.serial == serial) {
		lead_do(server, model, update_released(&model->update));
	}
}

void lead_member_lost(struct server *server, uint32_t rank, const char *name)
{
	if (server->active) {
		lead_do(server, server->active,
			update_node_lost(&server->active->update, rank, name, clock_ns()));
	}
}

void lead_rank_lost(
	struct server *server, struct model *model, uint32_t rank, bool released, const char *where)
{
	lead_do(server, model, update_rank_lost(&model->update, rank, released, where, clock_ns()));
}

void lead_tick(struct server *server, uint64_t now)
{
	for (struct model *model = server->models; model; model = model->next) {
		lead_do(server, model, update_tick(&model->update, now));
	}
	missed_tick(server, now);
	lead_ready(server);
}

uint64_t lead_due(const struct server *server)
{
	uint64_t due = missed_due(server);

	for (const struct model *model = server->models; model; model = model->next) {
		due = MIN(due, update_due(&model->update));
	}
	return due;
}
