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
	post(now->to_node,
		&(struct w_letter){.kind = LETTER_EPOCH, .epoch = (uint8_t)epoch->number});
}

static void lead_dies(void)
{
	memset(&now->update, 0, sizeof(now->update));
	memset(now->to_lead, 0, sizeof(now->to_lead));
	now->member_there = now->member_state = now->member_rank = 0;
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
		node_dies();
	} else {
		lead_dies();
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
		broker_dies(act.a);
		live_load(now);
		break;
	case ACT_LEAD_TIMER:
	case ACT_LEAD_LATE:
		lead_tick(&live[0].server, LATE);
		break;
	case ACT_NODE_TIMER:
	case ACT_NODE_LATE:
		node_tick(&live[act.a].server, LATE);
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
	uint8_t halves = now->halves_of[before->serial % 8], old[HALVES];

	if (!now->node[0].alive || live[0].model.committed == committed_before ||
		(before->state != UPDATE_MOVING && before->state != UPDATE_PUTTING)) {
		return;
	}
	memcpy(old, now->decided, sizeof(old));
	for (unsigned h = 0; h < HALVES; h++) {
		/* What a subset does not bring is as its trainer says: of the base. */
		now->decided[h] = halves >> h & 1 ? now->content_of[before->serial % 8]
				  : now->round_base == now->decided_version ? old[h]
									    : now->before[h];
	}
	memcpy(now->before, old, sizeof(old));
	now->decided_version = version;
	for (unsigned n = 0; n < config.nodes; n++) {
		now->node[n].excused =
			!now->node[n].alive || live[n].server.node.serial != before->serial;
	}
}
