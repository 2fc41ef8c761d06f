/*
 * What brokers recall of an update whose lead is lost, and what the next lead settles of it:
 * broker/recall.c and settle.c as they are, packed, and between them letters and the mover's job.
 */
#include "tests/explore/world.h"
#include <stdlib.h>
#include <string.h>

uint64_t broker_of(unsigned n, unsigned born)
{
	return 100 * (n + 1) + born;
}

static void unpack(const struct w_recall *packed, struct recall *ret_recall)
{
	memset(ret_recall, 0, sizeof(*ret_recall));
	ret_recall->update = packed->update;
	ret_recall->version = packed->version;
	ret_recall->how = (enum recall_how)packed->how;
	if (packed->lead) {
		ret_recall->nbrokers = 2;
		ret_recall->brokers[0] = broker_of(0, packed->lead - 1u);
		ret_recall->brokers[1] = broker_of(1, packed->node - 1u);
	}
	for (unsigned i = 0; i < GROUPS; i++) {
		if (packed->replicas & (1u << i)) {
			ret_recall->replicas[ret_recall->nreplicas++] = i;
		}
	}
	for (unsigned g = 0; g < config.ngroups; g++) {
		if (packed->own & (1u << g)) {
			ret_recall->own[ret_recall->nown++] =
				(struct group_name){config.replica[g], g};
		}
	}
}

static struct w_recall pack(const struct recall *recall)
{
	struct w_recall packed = {.update = (uint8_t)recall->update,
		.version = (uint8_t)recall->version,
		.how = (uint8_t)recall->how};

	if (recall->nbrokers) {
		packed.lead = (uint8_t)(recall->brokers[0] - broker_of(0, 0) + 1);
		packed.node = (uint8_t)(recall->brokers[1] - broker_of(1, 0) + 1);
	}
	for (size_t i = 0; i < recall->nreplicas; i++) {
		packed.replicas |= (uint8_t)(1u << recall->replicas[i]);
	}
	for (size_t i = 0; i < recall->nown; i++) {
		packed.own |= (uint8_t)(1u << recall->own[i].part);
	}
	return packed;
}

void load_recalls(struct live *at, const struct world *world, unsigned n)
{
	const struct w_node *from = &world->node[n];
	struct remembered *remembered = &at->model.remembered;
	struct member *member = &at->member;

	unpack(&from->recall, &remembered->recall);
	remembered->subset = from->recall_subset;
	remembered->base = from->recall_base;
	remembered->partial = from->recall_partial;
	remembered->publication = !from->has_recalled	? NULL
				  : from->recall_subset ? &at->half[from->recall_subset - 1]
							: &at->publication;
	member_recalls_free(member);
	if (n == 0 && world->member_recall.update) {
		member->recalls = calloc(1, sizeof(*member->recalls));
		if (!member->recalls) {
			abort();
		}
		strcpy(member->recalls->model, "m");
		unpack(&world->member_recall, &member->recalls->recall);
	}
}

void save_recalls(struct world *world, unsigned n)
{
	const struct remembered *remembered = &live[n].model.remembered;
	const struct member *member = &live[n].member;
	struct w_node *to = &world->node[n];

	to->recall = pack(&remembered->recall);
	to->recall_subset = (uint8_t)remembered->subset;
	to->recall_base = (uint8_t)remembered->base;
	to->recall_partial = remembered->partial;
	to->has_recalled = remembered->publication != NULL;
	if (n == 0) {
		memset(&world->member_recall, 0, sizeof(world->member_recall));
		if (live[0].server.members && member->recalls) {
			world->member_recall = pack(&member->recalls->recall);
		}
	}
}

struct w_letter recall_letter(const struct msg_recall *said)
{
	struct w_letter letter = {.kind = LETTER_RECALL};
	struct recall recall = {.update = said->update,
		.version = said->version,
		.how = (enum recall_how)said->how,
		.nbrokers = said->nbrokers,
		.nreplicas = said->nreplicas,
		.nown = said->nown};

	memcpy(recall.brokers, said->brokers, said->nbrokers * sizeof(recall.brokers[0]));
	memcpy(recall.replicas, said->replicas, said->nreplicas * sizeof(recall.replicas[0]));
	memcpy(recall.own, said->own, said->nown * sizeof(recall.own[0]));
	letter.recall = pack(&recall);
	return letter;
}

struct w_letter settled_letter(const struct msg_settled *said)
{
	struct w_letter letter = {.kind = LETTER_SETTLED};

	letter.recall.update = (uint8_t)said->update;
	letter.recall.version = (uint8_t)said->version;
	letter.recall.how = (uint8_t)said->how;
	for (size_t i = 0; i < said->nreplicas; i++) {
		letter.recall.replicas |= (uint8_t)(1u << said->replicas[i]);
	}
	return letter;
}

void lead_hears_recall(const struct w_recall *packed)
{
	struct msg_recall said = {.model = "m",
		.update = packed->update,
		.version = packed->version,
		.how = packed->how};
	struct recall recall;
	struct error err;

	unpack(packed, &recall);
	said.brokers = recall.brokers;
	said.nbrokers = recall.nbrokers;
	said.replicas = recall.replicas;
	said.nreplicas = recall.nreplicas;
	said.own = recall.own;
	said.nown = recall.nown;
	if (member_recall(&live[0].member, &said, &err)) {
		say_violation("a lead refuses what a broker may recall");
	}
}

void node_hears_settled(const struct w_recall *packed)
{
	struct msg_settled said = {.model = "m",
		.update = packed->update,
		.version = packed->version,
		.how = packed->how};
	struct recall recall;

	unpack(packed, &recall);
	said.replicas = recall.replicas;
	said.nreplicas = recall.nreplicas;
	recall_settled(&live[1].server, &said);
}

/* The mover: the copy of a commit that was learnt late. */

static void (*settled)(struct job *job);

void job_settle_run(struct job *job)
{
	(void)job;
}

uint8_t members_of(unsigned g)
{
	return (uint8_t)(((1u << config.members[g]) - 1) << (g * MEMBERS));
}

/* The real job is forgotten, and made again when it ends. */
void settle_submit(struct job_settle *job)
{
	unsigned g = (unsigned)job->crew.key - 1;
	struct server *server = job->data;

	if (g >= config.ngroups || !job->publication) {
		say_violation("a group settles what is not known any more");
	} else {
		struct w_job *added = job_add(live_node(server), JOB_SETTLE);

		settled = job->job.done;
		added->workers = members_of(g);
		added->errors = (uint8_t)g;
		added->serial = (uint8_t)live_team(g)->group.update;
	}
	free(job->crew.workers);
	free(job);
}

void settle_done_call(unsigned n, const struct w_job *ended)
{
	struct job_settle *job = calloc(1, sizeof(*job));

	if (!job) {
		abort();
	}
	job->data = &live[n].server;
	job->job.rc = ended->failed ? -5 : 0;
	job->job.err.text[0] = 'x';
	job->touched = ended->progress != JOB_QUEUED;
	job->crew.key = ended->gone ? 0 : ended->errors + 1u;
	settled(&job->job);
}
