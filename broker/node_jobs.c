/* The mover's jobs for this broker's part in an update: handed over, and taken back. */
#include "base/clock.h"
#include "base/log.h"
#include "base/util.h"
#include "broker/node_internal.h"
#include "strew/trainer.h"
#include <stdlib.h>
#include <string.h>

static struct plan_for plan_for(const struct server *server)
{
	return (struct plan_for){.publication = server->node.publication,
		.slot_bytes = server->epoch.slot_bytes,
		.rank = server->epoch.rank,
		.roots = server->node.roots,
		.wire = server->epoch.ranks > 1,
		.partial = node_partial(&server->node)};
}

static void planned(struct job *job)
{
	struct job_plan *work = (struct job_plan *)job;
	struct server *server = work->data;
	struct node *node = &server->node;

	node->job_running = false;
	node->unwanted = work->unwanted;
	node->wanted = work->wanted;
	if (node->stage == NODE_STOPPING) {
		node_abort(server, node->serial, node->abort_text);
		return;
	}
	if (job->rc) {
		log_error("update to version %llu: %s", (unsigned long long)node->version,
			job->err.text);
		node_answer(server, MSG_ACCEPT, job->rc, job->err.text);
		return;
	}
	for (size_t i = 0; i < node->nteams; i++) {
		if (node->errors[i].code) {
			struct group_event event = {
				.type = GE_REFUSE, .text = node->errors[i].text};

			team_step(server, node->teams[i], &event);
		}
	}
	node_advance(server);
}

void node_start_plan(struct server *server)
{
	struct node *node = &server->node;
	struct job_plan *work = &node->plan;

	memset(work, 0, sizeof(*work));
	work->job.run = job_plan_run;
	work->job.done = planned;
	work->moves = server->moves;
	work->plan_for = plan_for(server);
	work->crews = node->crews;
	work->ncrews = node->nteams;
	work->errors = node->errors;
	/* Plans of many groups take their time, which nothing cuts short: no driver hangs. */
	work->job.due = MAX(node->update_deadline, clock_ns() + LIMIT_PLAN_MS * 1000000ull) +
			LIMIT_HUNG_MS * 1000000ull;
	work->data = server;
	node->job_running = true;
	mover_submit(server->mover, &work->job);
}

/* The crews of the groups in that phase, for a job. */
void node_gather(struct node *node, enum group_phase phase)
{
	node->ngoing = 0;
	for (size_t i = 0; i < node->nteams; i++) {
		if (node->teams[i]->group.phase == phase) {
			node->going_teams[node->ngoing] = node->teams[i];
			node->going[node->ngoing++] = node->crews[i];
		}
	}
}

static void noted(struct job *job, unsigned notes)
{
	struct job_move *work = (struct job_move *)job;
	struct server *server = work->data;

	if (notes & NOTE_RELEASED) {
		node_released(server);
	}
}

static void add_stages(struct stages *sum, const struct stages *one)
{
	sum->gather_ns += one->gather_ns;
	sum->local_ns += one->local_ns;
	sum->wire_ns += one->wire_ns;
	sum->scatter_ns += one->scatter_ns;
}

static void moved(struct job *job)
{
	struct job_move *work = (struct job_move *)job;
	struct server *server = work->data;
	struct node *node = &server->node;
	struct group_event event = {.type = GE_MOVED};

	node->job_running = false;
	node->touched = node->touched || atomic_load(&work->touched);
	node->wire_bytes += work->wire_bytes;
	add_stages(&node->stages, &work->stages);
	free(node->hashes);
	node->hashes = work->hashes;
	node->nhashes = work->nhashes;
	work->hashes = NULL;
	if (job->rc == 0) {
		sums_note(server);
	}
	if (node->stage == NODE_STOPPING) {
		node_part_end(server);
		node_abort(server, node->serial, node->abort_text);
		return;
	}
	if (job->rc) {
		/* The whole node failed, and with it the update: the carrier is gone or the GPU is.
		 */
		log_error("update to version %llu: %s", (unsigned long long)node->version,
			job->err.text);
		event = (struct group_event){
			.type = GE_FAILED, .touched = node->touched, .text = job->err.text};
	}
	/* A part leaves its groups where they are: more is to come. */
	for (size_t i = 0; i < node->ngoing && (job->rc || !node->part); i++) {
		team_step(server, node->going_teams[i], &event);
	}
	if (node->part) {
		node_part_moved(server, job->rc, job->err.text);
		return;
	}
	if (job->rc) {
		node->stage = NODE_PREPARED;
		node_answer(server, MSG_PREPARED, job->rc, job->err.text);
		return;
	}
	node_advance(server);
}

void node_start_move(struct server *server)
{
	struct node *node = &server->node;
	struct job_move *work = &node->move;

	memset(work, 0, sizeof(*work));
	work->job.run = job_move_run;
	work->job.done = moved;
	work->job.noted = noted;
	work->moves = server->moves;
	work->plan_for = plan_for(server);
	work->plan_for.slot_types = &node->slot_types;
	work->wire = node->wire;
	work->hash = node->hash;
	work->wanted = &node->wanted;
	if (node->part) {
		work->plan_for.publication = node->moving;
		work->plan_for.partial = true;
		work->plan_for.slot_types = &node->part_types;
		work->wanted = &node->part_wanted;
	}
	work->crews = node->going;
	work->ncrews = node->ngoing;
	work->deadline = node->update_deadline;
	work->job.due = work->deadline + LIMIT_HUNG_MS * 1000000ull;
	work->data = server;
	node->job_running = true;
	mover_submit(server->mover, &work->job);
}

static void copied(struct job *job)
{
	struct job_commit *work = (struct job_commit *)job;
	struct server *server = work->data;
	struct node *node = &server->node;
	struct group_event event = {.type = GE_COPIED};

	node->job_running = false;
	if (job->rc) {
		log_error("commit of version %llu: %s", (unsigned long long)node->version,
			job->err.text);
		event = (struct group_event){
			.type = GE_FAILED, .touched = true, .text = job->err.text};
	}
	for (size_t i = 0; i < node->ngoing; i++) {
		team_step(server, node->going_teams[i], &event);
	}
	node_advance(server);
}

void node_start_commit(struct server *server)
{
	struct node *node = &server->node;
	struct job_commit *work = &node->commit;

	memset(work, 0, sizeof(*work));
	work->job.run = job_commit_run;
	work->job.done = copied;
	work->moves = server->moves;
	work->plan_for = plan_for(server);
	work->plan_for.slot_types = &node->slot_types;
	work->crews = node->going;
	work->ncrews = node->ngoing;
	work->deadline = clock_ns() + LIMIT_UPDATE_MS * 1000000ull;
	work->job.due = work->deadline + LIMIT_HUNG_MS * 1000000ull;
	work->data = server;
	node->job_running = true;
	mover_submit(server->mover, &work->job);
}
