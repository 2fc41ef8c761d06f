/*
 * What a broker remembers of the last update of each model, and what becomes of it when it joins
 * a lead that does not know how that update ended (recovery.h).
 *
 *   begin ─► ABORTED ─prepared─► PREPARED ─commit─► COMMITTED
 *                                PREPARED ─abort─► ABORTED
 *
 * So it is at every moment what is true if the lead is not heard again. A broker without an update
 * of its own has SEEN what workers that register again tell it. At each joining all of it is said
 * to the lead, which judges when it has heard something new, never while an update is under way.
 */
#include "base/log.h"
#include "base/util.h"
#include "broker/server.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- what is remembered ---- */

static void drop_publication(struct server *server, struct remembered *remembered)
{
	struct publication *publication = remembered->publication;

	remembered->publication = NULL;
	if (publication && --publication->references == 0) {
		publication_retire(server, publication);
	}
}

void recall_forget(struct server *server, struct model *model)
{
	drop_publication(server, &model->remembered);
	memset(&model->remembered, 0, sizeof(model->remembered));
}

/* Of the update that the node is in, or was in last; NULL: of another one. */
static struct remembered *of_node(struct server *server, const char *name)
{
	struct model *model = model_find(server, name, false);

	return model && model->remembered.recall.update == server->node.serial ? &model->remembered
									       : NULL;
}

void recall_begin(struct server *server)
{
	const struct node *node = &server->node;
	struct model *model = model_find(server, node->publication->model, false);
	struct remembered *remembered = &model->remembered;

	recall_forget(server, model);
	remembered->recall.update = node->serial;
	remembered->recall.version = node->version;
	remembered->recall.how = RECALL_ABORTED;
	remembered->partial = node_partial(node);
	remembered->subset = node->subset;
	remembered->base = node->base;
	if (!server_is_lead(server)) {
		remembered->recall.nbrokers = server->epoch.ranks;
		memcpy(remembered->recall.brokers, server->epoch.brokers,
			sizeof(remembered->recall.brokers));
	}
}

static size_t count_teams(const struct node *node, uint32_t replica)
{
	size_t n = 0;

	for (size_t i = 0; i < node->nteams; i++) {
		n += node->teams[i]->group.replica == replica &&
		     node->teams[i]->group.phase != PHASE_OUT;
	}
	return n;
}

/* After the groups have gone on: which replicas are here and nowhere else? */
void recall_go(struct server *server, const struct msg_decision *go)
{
	const struct node *node = &server->node;
	struct remembered *remembered = of_node(server, node->publication->model);
	struct recall *recall;

	if (!remembered || server_is_lead(server)) {
		return;
	}
	recall = &remembered->recall;
	recall->nreplicas = 0;
	for (size_t i = 0; i < go->nreplicas; i++) {
		size_t groups = groups_met(go, go->replicas[i]);

		if (groups && count_teams(node, go->replicas[i]) == groups) {
			recall_add(recall, go->replicas[i]);
		}
	}
	recall->nown = MIN(go->nown, LIMIT_GROUPS);
	if (recall->nown) {
		memcpy(recall->own, go->own, recall->nown * sizeof(go->own[0]));
	}
}

/* Is each group of it that the node has prepared? */
static bool is_prepared(const struct node *node, uint32_t replica)
{
	for (size_t i = 0; i < node->nteams; i++) {
		if (node->teams[i]->group.replica == replica &&
			node->teams[i]->group.phase != PHASE_PREPARED) {
			return false;
		}
	}
	return true;
}

void recall_prepared(struct server *server)
{
	const struct node *node = &server->node;
	struct remembered *remembered = of_node(server, node->publication->model);
	size_t n = 0;

	if (!remembered) {
		return;
	}
	for (size_t i = 0; i < remembered->recall.nreplicas; i++) {
		if (is_prepared(node, remembered->recall.replicas[i])) {
			remembered->recall.replicas[n++] = remembered->recall.replicas[i];
		}
	}
	remembered->recall.nreplicas = n;
	remembered->recall.how = RECALL_PREPARED;
	remembered->publication = node->publication;
	remembered->publication->references++;
}

bool recall_in_doubt(struct server *server)
{
	const struct publication *publication = server->node.publication;
	const struct remembered *remembered =
		publication ? of_node(server, publication->model) : NULL;

	return remembered && remembered->recall.how == RECALL_PREPARED;
}

void recall_committed(struct server *server, const struct msg_decision *commit)
{
	struct remembered *remembered = of_node(server, server->node.publication->model);

	if (!remembered) {
		return;
	}
	remembered->recall.how = RECALL_COMMITTED;
	remembered->recall.nreplicas = 0;
	for (size_t i = 0; i < commit->nreplicas; i++) {
		recall_add(&remembered->recall, commit->replicas[i]);
	}
	drop_publication(server, remembered);
}

void recall_aborted(struct server *server)
{
	const struct publication *publication = server->node.publication;
	struct remembered *remembered = publication ? of_node(server, publication->model) : NULL;

	if (remembered) {
		remembered->recall.how = RECALL_ABORTED;
		drop_publication(server, remembered);
	}
}

/* ---- a broker that joined ---- */

static void tell(struct server *server, const struct model *model)
{
	/* The arrays stay where they are. */
	struct recall recall = model->remembered.recall;
	struct message message;

	if (!recall.update || !server->lead.joined) {
		return;
	}
	message_init(&message, MSG_RECALL, 0);
	string_copy(message.u.recall.model, sizeof(message.u.recall.model), model->name);
	message.u.recall.update = recall.update;
	message.u.recall.version = recall.version;
	message.u.recall.how = recall.how;
	message.u.recall.brokers = recall.brokers;
	message.u.recall.nbrokers = recall.nbrokers;
	message.u.recall.replicas = recall.replicas;
	message.u.recall.nreplicas = recall.how == RECALL_ABORTED ? 0 : recall.nreplicas;
	message.u.recall.own = recall.own;
	message.u.recall.nown = recall.how == RECALL_PREPARED ? recall.nown : 0;
	join_send(server, &message);
}

void recalls_tell(struct server *server)
{
	for (struct model *model = server->models; model; model = model->next) {
		tell(server, model);
	}
}

static bool says_replica(const struct msg_settled *said, uint32_t replica)
{
	for (size_t i = 0; i < said->nreplicas; i++) {
		if (said->replicas[i] == replica) {
			return true;
		}
	}
	return false;
}

/* NONE: it stays in doubt. */
static enum strew_outcome outcome_for(
	const struct model *model, const struct msg_settled *said, uint32_t replica)
{
	if (said->how == RECALL_ABORTED) {
		return STREW_OUTCOME_ABORTED;
	}
	if (says_replica(said, replica)) {
		/* What has been overtaken is not worth a copy. */
		return model->committed > said->version ? STREW_OUTCOME_SAT_OUT
							: STREW_OUTCOME_COMMITTED;
	}
	return said->how == RECALL_COMMITTED ? STREW_OUTCOME_SAT_OUT : STREW_OUTCOME_NONE;
}

static void settle_teams(
	struct server *server, const struct model *model, const struct msg_settled *said)
{
	for (struct team *team = team_next(server, NULL, model->name); team;
		team = team_next(server, team, model->name)) {
		enum strew_outcome outcome = outcome_for(model, said, team->group.replica);

		if (outcome != STREW_OUTCOME_NONE) {
			settle_team(server, team, said->update, said->version, outcome);
		}
	}
}

void recall_settled(struct server *server, const struct msg_settled *said)
{
	struct model *model = model_find(server, said->model, false);
	struct remembered *remembered = model ? &model->remembered : NULL;

	if (!model || remembered->recall.update != said->update ||
		remembered->recall.how != RECALL_PREPARED || server->node.stage != NODE_IDLE) {
		return;
	}
	log_info("model %s: version %llu, which was prepared here when its lead was lost, was %s",
		model->name, (unsigned long long)said->version,
		said->how == RECALL_ABORTED ? "aborted" : "committed");
	remembered->recall.how = (enum recall_how)said->how;
	remembered->recall.nreplicas = 0;
	for (size_t i = 0; i < said->nreplicas; i++) {
		recall_add(&remembered->recall, said->replicas[i]);
	}
	settle_teams(server, model, said);
	if (said->how == RECALL_ABORTED) {
		drop_publication(server, remembered);
	} else if (said->version > model->committed) {
		model->committed = said->version;
		model->committed_subset = remembered->subset;
		model->committed_base = remembered->base;
		model->decided = true;
	}
	if (model->doubted == said->version) {
		model->doubted = 0;
	}
	teams_missed(server, model->name);
}

/* ---- a lead ---- */

void member_recalls_free(struct member *member)
{
	while (member->recalls) {
		struct member_recall *next = member->recalls->next;

		free(member->recalls);
		member->recalls = next;
	}
}

static struct member_recall *find_recall(struct member *member, const char *model)
{
	struct member_recall *recall = member->recalls;

	while (recall && strcmp(recall->model, model) != 0) {
		recall = recall->next;
	}
	return recall;
}

static struct member_recall *add_recall(struct member *member, const char *model)
{
	struct member_recall *recall = find_recall(member, model);
	size_t n = 0;

	if (recall) {
		return recall;
	}
	for (recall = member->recalls; recall; recall = recall->next) {
		n++;
	}
	recall = n < LIMIT_MODELS ? calloc(1, sizeof(*recall)) : NULL;
	if (recall) {
		string_copy(recall->model, sizeof(recall->model), model);
		recall->next = member->recalls;
		member->recalls = recall;
	}
	return recall;
}

/* A broker that has taken part is in the epoch, behind the lead; what workers tell may have none.
 */
static bool is_sound(const struct member *member, const struct msg_recall *said)
{
	bool listed = false;

	for (size_t i = 1; i < said->nbrokers; i++) {
		listed = listed || said->brokers[i] == member->join.broker_id;
	}
	return said->model[0] && said->update &&
	       (listed || (said->how == RECALL_SEEN && !said->nbrokers));
}

static void copy_recall(const struct msg_recall *said, struct recall *ret_recall)
{
	memset(ret_recall, 0, sizeof(*ret_recall));
	ret_recall->update = said->update;
	ret_recall->version = said->version;
	ret_recall->how = (enum recall_how)said->how;
	ret_recall->nbrokers = said->nbrokers;
	ret_recall->nown = said->nown;
	for (size_t i = 0; i < said->nbrokers; i++) {
		ret_recall->brokers[i] = said->brokers[i];
	}
	for (size_t i = 0; i < said->nreplicas; i++) {
		recall_add(ret_recall, said->replicas[i]);
	}
	for (size_t i = 0; i < said->nown; i++) {
		ret_recall->own[i] = said->own[i];
	}
}

/* Somebody has committed it under a lead before this one. */
static void learn(struct server *server, const char *name, uint64_t version)
{
	struct model *model = model_find(server, name, true);

	if (model && !model->decided && version > model->committed) {
		model->committed = version;
		model->committed_subset = 0; /* it is not said */
		model->committed_base = 0;
		teams_missed(server, name);
	}
}

int member_recall(struct member *member, const struct msg_recall *said, struct error *err)
{
	struct member_recall *recall =
		is_sound(member, said) ? add_recall(member, said->model) : NULL;

	if (!recall) {
		return error_set(err, -EPROTO, "recall of update %llu of model \"%s\"",
			(unsigned long long)said->update, said->model);
	}
	copy_recall(said, &recall->recall);
	recall->said_open = false;
	if (said->how == RECALL_COMMITTED || said->how == RECALL_SEEN) {
		learn(member->server, said->model, said->version);
	}
	recalls_settle(member->server);
	return 0;
}

static struct team *find_team(
	struct server *server, const char *model, const struct group_name *name)
{
	struct team *team = team_next(server, NULL, model);

	while (team && (team->group.replica != name->replica || team->group.part != name->part)) {
		team = team_next(server, team, model);
	}
	return team;
}

/* Has each group of the lead's node that might have committed come here and said that it has not?
 */
static bool is_untouched(struct server *server, const char *model, const struct recall *asked)
{
	if (asked->nbrokers && asked->brokers[0] == server->broker_id) {
		return false; /* that was us: what is not remembered any more is not known */
	}
	for (size_t i = 0; i < asked->nown; i++) {
		const struct team *team = find_team(server, model, &asked->own[i]);

		for (uint32_t k = 0; k < (team ? team->group.nmembers : 1); k++) {
			const struct client *client = team ? team->clients[k] : NULL;
			const struct msg_register *reg = client ? &client->session.reg : NULL;

			if (!reg || !team->group.members[k].present ||
				reg->update != asked->update || reg->holds != HOLDS_NOTHING) {
				return false;
			}
		}
	}
	return true;
}

#define WORDS_MAX (2 * LIMIT_BROKERS + 1)

static size_t gather_words(
	struct server *server, const char *name, struct recovery_word ret_words[WORDS_MAX])
{
	const struct model *model = model_find(server, name, false);
	size_t n = 0;

	if (model && model->remembered.recall.update) {
		ret_words[n++] =
			(struct recovery_word){server->broker_id, &model->remembered.recall};
	}
	for (struct member *member = server->members; member && n < WORDS_MAX;
		member = member->next) {
		const struct member_recall *recall = find_recall(member, name);

		if (recall) {
			ret_words[n++] =
				(struct recovery_word){member->join.broker_id, &recall->recall};
		}
	}
	return n;
}

static void say_settled(struct member *member, const char *model, struct recall *verdict)
{
	struct message message;

	message_init(&message, MSG_SETTLED, 0);
	string_copy(message.u.settled.model, sizeof(message.u.settled.model), model);
	message.u.settled.update = verdict->update;
	message.u.settled.version = verdict->version;
	message.u.settled.how = verdict->how;
	message.u.settled.replicas = verdict->replicas;
	message.u.settled.nreplicas = verdict->nreplicas;
	member_send(member, &message);
	log_info("model %s: version %llu, which its lead left undecided, was %s: broker %s is told",
		model, (unsigned long long)verdict->version,
		verdict->how == RECALL_ABORTED ? "aborted" : "committed", member->join.name);
}

/* Workers of this node were in that update too, at the broker before this one. */
static void settle_own(struct server *server, const char *name, const struct recall *verdict)
{
	if (verdict->how != RECALL_ABORTED) {
		learn(server, name, verdict->version);
		return;
	}
	for (struct team *team = team_next(server, NULL, name); team;
		team = team_next(server, team, name)) {
		settle_team(server, team, verdict->update, verdict->version, STREW_OUTCOME_ABORTED);
	}
}

static void settle_one(struct member *member, struct member_recall *asked)
{
	struct server *server = member->server;
	struct recovery_word words[WORDS_MAX];
	size_t n = gather_words(server, asked->model, words);
	struct recall verdict;

	if (!recovery_judge(&asked->recall, words, n,
		    is_untouched(server, asked->model, &asked->recall), &verdict)) {
		if (!asked->said_open) {
			asked->said_open = true;
			log_info("model %s: whether version %llu was committed, which broker %s "
				 "has prepared, is not known",
				asked->model, (unsigned long long)asked->recall.version,
				member->join.name);
		}
		return;
	}
	say_settled(member, asked->model, &verdict);
	/* From now on this is what it remembers. */
	asked->recall.how = verdict.how;
	asked->recall.nreplicas = verdict.nreplicas;
	memcpy(asked->recall.replicas, verdict.replicas, sizeof(verdict.replicas));
	settle_own(server, asked->model, &verdict);
}

void recalls_settle(struct server *server)
{
	if (!server_is_lead(server) || lead_busy(server)) {
		return;
	}
	for (struct member *member = server->members; member; member = member->next) {
		for (struct member_recall *recall = member->recalls; recall;
			recall = recall->next) {
			if (recall->recall.how == RECALL_PREPARED) {
				settle_one(member, recall);
			}
		}
	}
}

/* ---- any broker, of its workers ---- */

/* Their memory has bytes that only the update's commit has put there. */
static bool saw_commit(const struct msg_register *reg)
{
	return reg->update &&
	       (reg->holds == HOLDS_ALL ||
		       (reg->holds == HOLDS_SOME && reg->apply == STREW_APPLY_STAGED));
}

void recall_worker(struct client *client)
{
	const struct msg_register *reg = &client->session.reg;
	struct server *server = client->server;
	struct model *model = saw_commit(reg) ? model_find(server, reg->model, true) : NULL;
	struct recall *recall = model ? &model->remembered.recall : NULL;
	uint64_t version = reg->holds == HOLDS_ALL ? reg->version : 0;

	if (!model) {
		recalls_settle(server);
		return;
	}
	if (recall->update != reg->update &&
		(!recall->update || (recall->how == RECALL_SEEN && version > recall->version))) {
		recall_forget(server, model);
		recall->update = reg->update;
		recall->version = version;
		recall->how = RECALL_SEEN;
	}
	if (recall->update == reg->update && recall->how == RECALL_SEEN &&
		!recall_has(recall, reg->replica)) {
		recall_add(recall, reg->replica);
		tell(server, model);
	}
	recalls_settle(server);
}
