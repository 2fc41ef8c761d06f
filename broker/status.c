/* The answer to status: what is here, in one message. */
#include "base/clock.h"
#include "base/util.h"
#include "broker/server.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of a worker: its group is proved where all are. */
static void note_layout(const struct msg_register *reg, bool first, struct status_group *said)
{
	said->loader += reg->loader;
	said->refused += reg->refused;
	said->proof = first ? reg->proof : MIN(said->proof, reg->proof);
}

static void fill_group(struct server *server, const struct team *team, struct status_group *said)
{
	const struct group *group = &team->group;
	bool first = true;

	(void)server;
	memset(said, 0, sizeof(*said));
	string_copy(said->model, sizeof(said->model), group->model);
	said->replica = group->replica;
	said->part = group->part;
	said->members = group->nmembers;
	said->present = group->npresent;
	said->gate = group->gate;
	said->apply = group->apply;
	said->state = group_state(group);
	said->version = group->version;
	for (uint32_t i = 0; i < group->nmembers; i++) {
		const struct client *client = team->clients[i];

		if (client && client->session.worker && client->session.state == SESSION_LIVE) {
			struct worker_routes routes = worker_routes(client->session.worker);

			said->bytes += layout_bytes(&client->session.worker->layout);
			said->shadow += client->session.worker->shadow_bytes;
			said->raw += routes.raw;
			said->pull += routes.pull;
			note_layout(&client->session.reg, first, said);
			first = false;
		}
	}
}

static void fill_trainer(const struct model *model, struct status_trainer *said)
{
	memset(said, 0, sizeof(*said));
	string_copy(said->model, sizeof(said->model), model->name);
	said->ranks = model->ranks;
	for (uint32_t i = 0; i < model->ranks; i++) {
		said->present += model->seats[i].client || model->seats[i].member;
	}
	if (model->publication) {
		said->tensors = model->publication->manifest.ntensors;
		said->bytes = manifest_bytes(&model->publication->manifest);
	}
	said->version = model->committed;
	said->subsets = model->nsubsets;
	said->subset = model->committed_subset;
	said->base = model->committed_subset ? model->committed_base : 0;
	string_copy(said->stage, sizeof(said->stage), update_state_name(model->update.state));
}

static void fill_broker(const struct msg_join *join, uint32_t rank, struct status_broker *said)
{
	memset(said, 0, sizeof(*said));
	said->rank = rank;
	string_copy(said->name, sizeof(said->name), join->name);
	gpu_uuid_format(said->device, sizeof(said->device), join->uuid);
}

static void fill_bounces(const struct rings *rings, struct msg_status_reply *reply)
{
	size_t n = atomic_load(&rings->n);

	for (; reply->nbounces < n; reply->nbounces++) {
		const struct ring *ring = &rings->v[reply->nbounces];
		struct status_bounce *said = &reply->bounces[reply->nbounces];

		gpu_uuid_format(said->from, sizeof(said->from), ring->from);
		gpu_uuid_format(said->to, sizeof(said->to), ring->to);
		said->bytes = ring->bytes;
	}
}

static void fill_lists(struct server *server, struct msg_status_reply *reply)
{
	struct msg_join own;

	for (struct team *team = server->teams; team && reply->ngroups < LIMIT_GROUPS;
		team = team->next) {
		fill_group(server, team, &reply->groups[reply->ngroups++]);
	}
	for (struct model *model = server->models; model && reply->ntrainers < LIMIT_MODELS;
		model = model->next) {
		fill_trainer(model, &reply->trainers[reply->ntrainers++]);
	}
	join_fill(server, &own);
	fill_broker(&own, server->epoch.rank, &reply->brokers[reply->nbrokers++]);
	for (struct member *member = server->members; member && reply->nbrokers < LIMIT_BROKERS;
		member = member->next) {
		if (member->state != MEMBER_CONNECTED) {
			fill_broker(
				&member->join, member->rank, &reply->brokers[reply->nbrokers++]);
		}
	}
}

void status_answer(struct client *client, uint64_t serial)
{
	static const char *const carriers[] = {"none", "tcp", "nccl"};
	struct server *server = client->server;
	struct msg_status_reply *reply;
	struct message message;

	message_init(&message, MSG_STATUS_REPLY, serial);
	reply = &message.u.status_reply;
	reply->broker_id = server->broker_id;
	reply->pid = (uint64_t)getpid();
	reply->uptime_ms = (clock_ns() - server->started_ns) / 1000000u;
	string_copy(reply->backend, sizeof(reply->backend), gpu_info(server->gpu)->kind_name);
	gpu_uuid_format(reply->device, sizeof(reply->device), server->uuid);
	string_copy(reply->library, sizeof(reply->library), STREW_VERSION);
	string_copy(reply->carrier, sizeof(reply->carrier),
		carriers[server->epoch.state == EPOCH_READY ? server->epoch.carrier
							    : CARRIER_NONE]);
	reply->nccl = nccl_version();
	reply->lead = server_is_lead(server);
	reply->epoch = server->epoch.number;
	reply->slot_bytes = server->options.slot_bytes;
	reply->slots = server->options.slots;
	reply->updates = server->updates;
	reply->aborted = server->aborted;
	reply->plans = moves_plans_made(server->moves);
	reply->groups = calloc(LIMIT_GROUPS, sizeof(*reply->groups));
	reply->trainers = calloc(LIMIT_MODELS, sizeof(*reply->trainers));
	reply->brokers = calloc(LIMIT_BROKERS, sizeof(*reply->brokers));
	reply->bounces = calloc(LIMIT_RINGS, sizeof(*reply->bounces));
	if (reply->groups && reply->trainers && reply->brokers && reply->bounces) {
		fill_bounces(moves_rings(server->moves), reply);
		fill_lists(server, reply);
		client_send(client, &message);
	}
	message_finish(&message);
}
