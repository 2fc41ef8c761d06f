/*
 * What happens between the brokers, to them, and to the trainer: the glue of join.c, epoch.c and
 * models.c, as thin as it goes.
 */
#include "base/util.h"
#include "tests/explore/surround.h"
#include <string.h>

#define LATE (UINT64_MAX - 1)

static uint32_t replicas_of(uint8_t set, uint32_t ret_replicas[GROUPS])
{
	uint32_t n = 0;

	for (unsigned i = 0; i < GROUPS; i++) {
		if (set & (1u << i)) {
			ret_replicas[n++] = i;
		}
	}
	return n;
}

static void node_hears(const struct w_letter *letter)
{
	struct server *server = &live[1].server;
	uint32_t replicas[GROUPS], alone[GROUPS], roots[1] = {0};
	struct msg_begin begin = {.epoch = letter->epoch,
		.update = letter->update,
		.model = "m",
		.version = letter->version,
		.flags = config.scope_all ? STREW_PUBLISH_SCOPE_ALL : 0,
		.timeout_ms = 60000,
		.roots = roots,
		.nroots = 1};
	struct msg_decision decision = {.epoch = letter->epoch,
		.update = letter->update,
		.replicas = replicas,
		.nreplicas = replicas_of(letter->groups, replicas),
		.alone = alone,
		.nalone = replicas_of(letter->alone, alone),
		.wire = letter->wire};

	switch (letter->kind) {
	case LETTER_JOINED:
		now->joined = 1;
		server->lead.joined = true;
		break;
	case LETTER_MANIFEST:
		live[1].model.publication = &live[1].publication;
		live[1].model.committed = MAX(live[1].model.committed, letter->version);
		teams_missed(server, "m");
		now->node[1].excused &= letter->version < now->decided_version;
		break;
	case LETTER_EPOCH:
		for (unsigned i = 0; i < JOBS; i++) {
			now->node[1].jobs[i].gone |= now->node[1].jobs[i].kind == JOB_EPOCH;
		}
		server->epoch.state = EPOCH_MAKING;
		job_add(1, JOB_EPOCH)->serial = letter->epoch;
		break;
	case LETTER_BEGIN:
		if (letter->epoch == server->epoch.number && server->epoch.state == EPOCH_READY) {
			node_begin(server, &begin);
		}
		break;
	case LETTER_GO:
		node_go(server, &decision);
		break;
	case LETTER_COMMIT:
		node_commit(server, &decision);
		break;
	case LETTER_ABORT:
		node_abort(server, letter->update, "x");
		break;
	default:
		link_down();
		break;
	}
}

static void lead_hears_answer(const struct w_letter *letter)
{
	struct group_outcome outcomes[GROUPS];
	struct msg_groups answer = {.epoch = letter->epoch,
		.update = letter->update,
		.groups = outcomes,
		.code = letter->code,
		.text = "x"};

	memset(outcomes, 0, sizeof(outcomes));
	for (unsigned g = 0; g < config.ngroups; g++) {
		if (letter->groups & (1u << g)) {
			struct group_outcome *outcome = &outcomes[answer.ngroups++];

			outcome->replica = config.replica[g];
			outcome->part = g;
			outcome->outcome = letter->outcome[g];
			outcome->state = letter->state[g];
			outcome->text[0] = outcome->outcome ? 'x' : 0;
		}
	}
	lead_answer(&live[0].server, live[0].member.rank,
		letter->kind == LETTER_ACCEPT	  ? MSG_ACCEPT
		: letter->kind == LETTER_PREPARED ? MSG_PREPARED
						  : MSG_APPLIED,
		&answer);
}

static void lead_hears(const struct w_letter *letter)
{
	struct server *server = &live[0].server;

	switch (letter->kind) {
	case LETTER_JOIN:
		live[0].member.state = MEMBER_JOINED;
		post(now->to_node, &(struct w_letter){.kind = LETTER_JOINED});
		epoch_changed(server);
		break;
	case LETTER_EPOCH_READY:
		if (letter->epoch == server->epoch.number && server->epoch.state == EPOCH_MAKING) {
			server->epoch.state = EPOCH_READY;
			lead_ready(server);
		}
		break;
	case LETTER_EOF:
		member_drop(server);
		break;
	default:
		if (live[0].member.state == MEMBER_IN_EPOCH) {
			lead_hears_answer(letter);
		}
		break;
	}
}

static struct w_letter take_letter(struct w_letter letters[LETTERS])
{
	struct w_letter letter = letters[0];

	memmove(letters, letters + 1, (LETTERS - 1) * sizeof(*letters));
	memset(&letters[LETTERS - 1], 0, sizeof(*letters));
	return letter;
}

/* As epoch_start(); our own communicator is made at once. */
static void epoch_make(void)
{
	struct server *server = &live[0].server;
	struct epoch *epoch = &server->epoch;

	epoch->number++;
	epoch->ranks = 1;
	if (!server->members || live[0].member.state == MEMBER_CONNECTED) {
		epoch->state = EPOCH_NONE;
		lead_ready(server);
		return;
	}
	if (live[0].member.state == MEMBER_JOINED && live[0].model.publication) {
		post(now->to_node, &(struct w_letter){.kind = LETTER_MANIFEST,
					   .version = (uint8_t)live[0].model.committed});
	}
	live[0].member.state = MEMBER_IN_EPOCH;
	live[0].member.rank = 1;
	epoch->ranks = 2;
	epoch->state = EPOCH_MAKING;
	post(now->to_node,
		&(struct w_letter){.kind = LETTER_EPOCH, .epoch = (uint8_t)epoch->number});
}

/* As rank_gone() and seat_leave() at the lead. */
static void trainer_dies(void)
{
	struct server *server = &live[0].server;
	struct model *model = &live[0].model;

	now->trainer.alive = now->trainer.seated = now->trainer.streaming = 0;
	now->trainer.lent = now->trainer.publishing = now->trainer.version = 0;
	for (unsigned i = 0; i < JOBS; i++) {
		now->node[0].jobs[i].gone |= now->node[0].jobs[i].kind == JOB_MOVE;
	}
	model->seats[0].client = NULL;
	model->seats[0].ready = false;
	lead_rank_lost(server, model, 0, model->update.released, "");
	model->publication = NULL;
	model->ranks = 0;
}

static void broker_dies(unsigned n)
{
	struct w_node *node = &now->node[n];

	for (unsigned g = 0; g < config.ngroups; g++) {
		for (unsigned m = 0; m < config.members[g] && config.node_of[g] == n; m++) {
			worker_loses_broker(g, m);
			now->worker[g][m].session = now->worker[g][m].watched = 0;
		}
		if (config.node_of[g] == n) {
			memset(&now->group[g], 0, sizeof(now->group[g]));
		}
	}
	memset(node, 0, sizeof(*node));
	/* Nothing is on disk: of earlier decisions a new broker knows what its workers and its lead
	 * say. */
	node->excused = 1;
	if (n) {
		memset(now->to_node, 0, sizeof(now->to_node));
		now->linked = now->joined = 0;
		post(now->to_lead, &(struct w_letter){.kind = LETTER_EOF});
		return;
	}
	memset(&now->update, 0, sizeof(now->update));
	memset(now->to_lead, 0, sizeof(now->to_lead));
	now->member_there = now->member_state = now->member_rank = 0;
	post(now->to_node, &(struct w_letter){.kind = LETTER_EOF});
	now->trainer.seated = now->trainer.streaming = 0;
	now->trainer.lent = now->trainer.publishing = now->trainer.version = 0;
}

static void publish(void)
{
	struct w_trainer *trainer = &now->trainer;
	struct message message;

	message_init(&message, MSG_PUBLISH, 3);
	message.u.publish.version = now->decided_version + 1u;
	message.u.publish.flags = config.scope_all ? STREW_PUBLISH_SCOPE_ALL : 0;
	trainer->publishing = ++trainer->contents;
	trainer->version = (uint8_t)message.u.publish.version;
	trainer->lent = 1;
	lead_publish(&live[0].trainer, &message);
}

static void cut(void)
{
	memset(now->to_node, 0, sizeof(now->to_node));
	memset(now->to_lead, 0, sizeof(now->to_lead));
	post(now->to_node, &(struct w_letter){.kind = LETTER_EOF});
	post(now->to_lead, &(struct w_letter){.kind = LETTER_EOF});
}

static void node_connects(void)
{
	now->linked = 1;
	live[0].server.members = &live[0].member;
	live[0].member.state = MEMBER_CONNECTED;
	live[0].member.rank = 0;
	post(now->to_lead, &(struct w_letter){.kind = LETTER_JOIN});
}

/* As rank_place() and rank_mapped(). */
static void trainer_starts(void)
{
	struct model *model = &live[0].model;

	now->trainer.alive = now->trainer.seated = 1;
	model->ranks = 1;
	model->seats[0].client = &live[0].trainer;
	model->seats[0].ready = true;
	live[0].trainer.model = model;
	model_try_seal(&live[0].server, model);
}

void act_of_broker(struct act act)
{
	struct w_letter letter;

	switch (act.kind) {
	case ACT_LETTER_TO_NODE:
		letter = take_letter(now->to_node);
		node_hears(&letter);
		break;
	case ACT_LETTER_TO_LEAD:
		letter = take_letter(now->to_lead);
		lead_hears(&letter);
		break;
	case ACT_STREAM_DONE:
		now->trainer.streaming = 0;
		live[0].trainer.watch.hit(&live[0].trainer.watch);
		break;
	case ACT_EPOCH:
		epoch_make();
		break;
	case ACT_CONNECT:
		node_connects();
		break;
	case ACT_TRAINER_START:
		trainer_starts();
		break;
	case ACT_BROKER_START:
		now->node[act.a].alive = now->node[act.a].epoch_ranks = 1;
		live_load(now);
		break;
	case ACT_BROKER_DIES:
		broker_dies(act.a);
		live_load(now);
		break;
	case ACT_PUBLISH:
		publish();
		break;
	case ACT_LEAD_TIMER:
	case ACT_LEAD_LATE:
		lead_tick(&live[0].server, LATE);
		break;
	case ACT_NODE_TIMER:
	case ACT_NODE_LATE:
		node_tick(&live[act.a].server, LATE);
		break;
	case ACT_CATCH_TIMER:
	case ACT_CATCH_LATE:
		live_catch_late(&live[act.a].server);
		break;
	case ACT_TRAINER_DIES:
		trainer_dies();
		break;
	case ACT_CUT:
		cut();
		break;
	case ACT_LEAD_DROPS:
		member_drop(&live[0].server);
		break;
	case ACT_NODE_DROPS:
		link_down();
		break;
	default:
		break;
	}
}

/* A commit was decided in this act: from now on this is what groups should hold. */
void note_decision(uint8_t committed_before, const struct w_update *before, uint8_t version)
{
	if (!now->node[0].alive || live[0].model.committed == committed_before ||
		before->state != UPDATE_MOVING) {
		return;
	}
	now->decided = now->content_of[before->serial % 8];
	now->decided_version = version;
	for (unsigned n = 0; n < config.nodes; n++) {
		now->node[n].excused =
			!now->node[n].alive || live[n].server.node.serial != before->serial;
	}
}
