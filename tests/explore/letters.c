/*
 * The connection between the brokers: what one sends is a letter, what the other does with it is
 * that of join.c and epoch.c, as thin as it goes. What speaks of trainer ranks goes through the
 * real ranks.c and members.c.
 */
#include "base/util.h"
#include "strew/trainer.h"
#include "tests/explore/world.h"
#include <string.h>

/* What is sent to where nobody listens is lost, and what is sent behind an end of file. */
void post(struct w_letter letters[LETTERS], const struct w_letter *letter)
{
	if (letters == now->to_node ? !now->linked : !live[0].server.members) {
		return;
	}
	for (unsigned i = 0; i < LETTERS; i++) {
		if (letters[i].kind == LETTER_EOF) {
			return;
		}
		if (letters[i].kind == LETTER_NONE) {
			letters[i] = *letter;
			return;
		}
	}
	too_small("letters");
}

/* The lead ends the connection to its member, as member_drop() in epoch.c. */
void member_drop(struct server *server)
{
	struct member *member = server->members;
	bool in_epoch = member->state == MEMBER_IN_EPOCH;
	bool counted = member->state != MEMBER_CONNECTED;
	uint32_t rank = member->rank;

	member_ranks_lost(member);
	server->members = NULL;
	member_recalls_free(member);
	memset(now->to_lead, 0, sizeof(now->to_lead));
	post(now->to_node, &(struct w_letter){.kind = LETTER_EOF});
	if (in_epoch) {
		lead_member_lost(server, rank, "n");
	}
	if (counted) {
		epoch_changed(server);
	}
}

/* The joiner ends its connection to the lead, as link_down() in join.c. */
void link_down(void)
{
	struct server *server = &live[1].server;
	bool was_joined = server->lead.joined;

	memset(now->to_node, 0, sizeof(now->to_node));
	post(now->to_lead, &(struct w_letter){.kind = LETTER_EOF});
	now->linked = 0;
	server->lead.joined = false;
	for (unsigned i = 0; i < JOBS; i++) {
		now->node[1].jobs[i].gone |= now->node[1].jobs[i].kind == JOB_EPOCH;
	}
	if (was_joined) {
		ranks_link_down(server);
		node_doubt(server);
	}
}

static uint32_t flags_of(const struct w_letter *letter)
{
	return (config.scope_all ? STREW_PUBLISH_SCOPE_ALL : 0) |
	       (letter->parts ? PUBLISH_PARTS : 0);
}

/* The answers of the lead to what ranks.c has asked; true if it was one. */
static bool ranks_hear(const struct w_letter *letter)
{
	static const enum message_type types[LETTER_KINDS] = {[LETTER_DECLARED] = MSG_DECLARED,
		[LETTER_OK] = MSG_OK,
		[LETTER_ERROR] = MSG_ERROR,
		[LETTER_REPORT] = MSG_REPORT};
	struct message message;
	struct error err;

	if (!types[letter->kind]) {
		return false;
	}
	message_init(&message, types[letter->kind], letter->serial);
	if (message.type == MSG_ERROR) {
		message.u.error.code = letter->code;
		strcpy(message.u.error.text, "x");
	} else if (message.type == MSG_REPORT) {
		message.u.report.version = letter->version;
		message.u.report.outcome = letter->code;
	}
	if (ranks_answer(&live[1].server, &message, &err) < 0) {
		say_violation("a broker drops its lead for what it may say of a trainer rank");
	}
	return true;
}

/* As take_manifest(), and subset_chosen() behind it. */
static void hears_manifest(const struct w_letter *letter)
{
	struct server *server = &live[1].server;
	struct model *model = &live[1].model;

	if (model->leaving_serial) {
		return;
	}
	for (unsigned r = 0; r < config.nranks; r++) {
		if (config.rank_node[r] == 1 &&
			!(model->seats[r].client && model->seats[r].ready)) {
			say_violation("a manifest came, of a rank that is not here");
		}
	}
	live_name_brokers(now, 1);
	model->publication = &live[1].publication;
	model->nsubsets = HALVES;
	model->committed = MAX(model->committed, letter->version);
	teams_missed(server, "m");
	now->node[1].excused &= letter->version < now->decided_version;
}

static void hears_epoch(const struct w_letter *letter)
{
	for (unsigned i = 0; i < JOBS; i++) {
		now->node[1].jobs[i].gone |= now->node[1].jobs[i].kind == JOB_EPOCH;
	}
	live[1].server.epoch.state = EPOCH_MAKING;
	live[1].server.epoch.brokers[0] = broker_of(0, letter->recall.lead);
	job_add(1, JOB_EPOCH)->serial = letter->epoch;
}

static void hears_begin(const struct w_letter *letter)
{
	struct server *server = &live[1].server;
	uint32_t roots[RANKS];
	struct msg_begin begin = {.epoch = letter->epoch,
		.update = letter->update,
		.model = "m",
		.version = letter->version,
		.flags = flags_of(letter),
		.timeout_ms = 60000,
		.roots = roots,
		.nroots = config.nranks,
		.subset = letter->subset,
		.base = letter->base};

	for (unsigned r = 0; r < config.nranks; r++) {
		roots[r] = config.rank_node[r];
	}
	if (letter->epoch == server->epoch.number && server->epoch.state == EPOCH_READY) {
		node_begin(server, &begin);
	}
}

/* What a go tells for the case that its lead is lost. */
struct go_lists {
	uint32_t met[GROUPS];
	struct group_name own[GROUPS];
};

static void fill_lists(
	struct msg_decision *decision, const struct w_letter *letter, struct go_lists *lists)
{
	decision->met = lists->met;
	decision->own = lists->own;
	for (uint32_t replica = 0; replica < GROUPS; replica++) {
		for (unsigned n = 0; n < letter->met[replica]; n++) {
			lists->met[decision->nmet++] = replica;
		}
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		if (letter->own & (1u << g)) {
			lists->own[decision->nown++] = (struct group_name){config.replica[g], g};
		}
	}
}

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
	uint32_t replicas[GROUPS];
	struct msg_decision decision = {.epoch = letter->epoch,
		.update = letter->update,
		.replicas = replicas,
		.nreplicas = replicas_of(letter->groups, replicas),
		.wire = letter->wire,
		.part = letter->part};
	struct go_lists lists;

	fill_lists(&decision, letter, &lists);
	if (ranks_hear(letter)) {
		return;
	}
	switch (letter->kind) {
	case LETTER_JOINED:
		server->lead.joined = true;
		models_undeclared(server);
		recalls_tell(server);
		ranks_joined(server);
		break;
	case LETTER_SETTLED:
		node_hears_settled(&letter->recall);
		break;
	case LETTER_MANIFEST:
		hears_manifest(letter);
		break;
	case LETTER_UNDECLARED:
		model_undeclared(server, "m");
		break;
	case LETTER_EPOCH:
		hears_epoch(letter);
		break;
	case LETTER_BEGIN:
		hears_begin(letter);
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
	static const enum message_type types[LETTER_KINDS] = {[LETTER_ACCEPT] = MSG_ACCEPT,
		[LETTER_MOVED] = MSG_MOVED,
		[LETTER_PREPARED] = MSG_PREPARED,
		[LETTER_APPLIED] = MSG_APPLIED};
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
	if (live[0].member.state == MEMBER_IN_EPOCH) {
		lead_answer(&live[0].server, live[0].member.rank, types[letter->kind], &answer);
	}
}

/* As member_declare(), whose parts have come before it. */
static void hears_declare(const struct w_letter *letter)
{
	struct msg_trainer who = {.model = "m", .rank = letter->rank, .ranks = config.nranks};
	struct seat *seat;
	struct model *model;
	struct error err;

	if (seat_find(&live[0].server, &who, &model, &err)) {
		member_refuse(&live[0].member, letter->serial, &err);
		return;
	}
	model->ranks = config.nranks;
	seat = &model->seats[letter->rank];
	seat->member = &live[0].member;
	seat->declare_serial = letter->serial;
	seat->ready = true;
	model_try_seal(&live[0].server, model);
}

/* What a joined broker says of its ranks; -1 if it is to be dropped for it. */
static int lead_hears_ranks(const struct w_letter *letter)
{
	struct member *member = &live[0].member;
	struct message message;
	struct error err;

	message_init(&message, MSG_RANK_DONE, letter->serial);
	switch (letter->kind) {
	case LETTER_UNDECLARE:
		strcpy(message.u.undeclare.model, "m");
		message.u.undeclare.rank = letter->rank;
		message.u.undeclare.released = letter->released;
		return member_undeclare(member, &message, &err);
	case LETTER_RANK_PUBLISH:
		strcpy(message.u.rank_publish.model, "m");
		message.u.rank_publish.rank = letter->rank;
		message.u.rank_publish.version = letter->version;
		message.u.rank_publish.flags = flags_of(letter);
		message.u.rank_publish.subset = letter->subset;
		message.u.rank_publish.base = letter->base;
		return member_publish(member, &message, &err);
	case LETTER_RANK_PUT:
		strcpy(message.u.rank_put.model, "m");
		message.u.rank_put.rank = letter->rank;
		message.u.rank_put.version = letter->version;
		message.u.rank_put.subset = letter->subset;
		return member_put(member, &message, &err);
	default:
		strcpy(message.u.rank_done.model, "m");
		message.u.rank_done.rank = letter->rank;
		message.u.rank_done.version = letter->version;
		return member_done(member, &message.u.rank_done, &err);
	}
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
	case LETTER_RECALL:
		lead_hears_recall(&letter->recall);
		break;
	case LETTER_DECLARE:
		hears_declare(letter);
		break;
	case LETTER_UNDECLARE:
	case LETTER_RANK_PUBLISH:
	case LETTER_RANK_PUT:
	case LETTER_RANK_DONE:
		if (lead_hears_ranks(letter)) {
			say_violation("a broker is dropped for what it may say of its ranks");
		}
		break;
	default:
		lead_hears_answer(letter);
		break;
	}
}

void letter_arrives(bool at_lead)
{
	struct w_letter *letters = at_lead ? now->to_lead : now->to_node;
	struct w_letter letter = letters[0];

	memmove(letters, letters + 1, (LETTERS - 1) * sizeof(*letters));
	memset(&letters[LETTERS - 1], 0, sizeof(*letters));
	if (at_lead) {
		lead_hears(&letter);
	} else {
		node_hears(&letter);
	}
}
