/*
 * What happens to the brokers: epochs, connections, their beginning and end, deadlines; the glue of
 * join.c and epoch.c, as thin as it goes.
 */
#include "tests/explore/world.h"
#include <string.h>

#define LATE (UINT64_MAX - 1)

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
	if (live[0].member.state == MEMBER_JOINED) {
		lead_send_manifest(&live[0].model, &live[0].member);
	}
	live[0].member.state = MEMBER_IN_EPOCH;
	live[0].member.rank = 1;
	epoch->ranks = 2;
	epoch->state = EPOCH_MAKING;
	post(now->to_node, &(struct w_letter){.kind = LETTER_EPOCH,
				   .epoch = (uint8_t)epoch->number,
				   .recall.lead = now->node[0].born});
}

/* What it sent last may be lost with it. */
static void lead_dies(bool words_lost)
{
	memset(&now->update, 0, sizeof(now->update));
	memset(&now->member_recall, 0, sizeof(now->member_recall));
	memset(now->to_lead, 0, sizeof(now->to_lead));
	now->member_there = now->member_state = now->member_rank = now->member_born = 0;
	if (words_lost) {
		memset(now->to_node, 0, sizeof(now->to_node));
	}
	post(now->to_node, &(struct w_letter){.kind = LETTER_EOF});
	for (unsigned r = 0; r < config.nranks; r++) {
		memset(&now->rank[r].seat, 0, sizeof(now->rank[r].seat));
	}
}

static void node_dies(void)
{
	memset(now->to_node, 0, sizeof(now->to_node));
	now->linked = now->joined = now->link_serial = 0;
	post(now->to_lead, &(struct w_letter){.kind = LETTER_EOF});
}

static void broker_dies(unsigned n, bool words_lost)
{
	struct w_node *node = &now->node[n];
	uint8_t born = node->born;

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
	node->born = born + 1;
	/* Nothing is on disk: of earlier decisions a new broker knows what its workers and its lead
	 * say. */
	node->excused = 1;
	now->undo.excused |= (uint8_t)(1u << n);
	if (n) {
		node_dies();
	} else {
		lead_dies(words_lost);
	}
	for (unsigned r = 0; r < config.nranks; r++) {
		if (config.rank_node[r] == n) {
			rank_loses_broker(r);
		}
	}
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
	member_recalls_free(&live[0].member);
	now->member_born = now->node[1].born;
	live[0].member.join.broker_id = broker_of(1, now->member_born);
	live[0].member.state = MEMBER_CONNECTED;
	live[0].member.rank = 0;
	post(now->to_lead, &(struct w_letter){.kind = LETTER_JOIN});
}

void act_of_broker(struct act act)
{
	switch (act.kind) {
	case ACT_LETTER_TO_NODE:
	case ACT_LETTER_TO_LEAD:
		letter_arrives(act.kind == ACT_LETTER_TO_LEAD);
		break;
	case ACT_EPOCH:
		epoch_make();
		break;
	case ACT_CONNECT:
		node_connects();
		break;
	case ACT_BROKER_START:
		now->node[act.a].alive = now->node[act.a].epoch_ranks = 1;
		live_load(now);
		break;
	case ACT_BROKER_DIES:
		broker_dies(act.a, act.b);
		live_load(now);
		break;
	case ACT_LEAD_TIMER:
	case ACT_LEAD_LATE:
		lead_tick(&live[0].server, LATE);
		break;
	case ACT_NODE_TIMER:
	case ACT_NODE_LATE:
		node_tick(&live[act.a].server, LATE);
		settle_tick(&live[act.a].server, LATE);
		break;
	case ACT_CATCH_TIMER:
	case ACT_CATCH_LATE:
		live_catch_late(&live[act.a].server);
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
