/* strew status --json: the same facts for scripts. Keys are added, never changed. */
#include "cli/cli.h"
#include "cli/json.h"
#include <stdio.h>
#include <strew/strew.h>

static json_t *group_json(const struct status_group *group)
{
	json_t *object = json_object();

	json_put_text(object, "model", group->model);
	json_put(object, "replica", group->replica);
	json_put(object, "part", group->part);
	json_put(object, "members", group->members);
	json_put(object, "present", group->present);
	json_put_text(object, "gate", status_gate(group->gate));
	json_put_text(object, "apply", status_apply(group->apply));
	json_put_text(
		object, "state", strew_group_state_name((enum strew_group_state)group->state));
	json_put(object, "version", group->version);
	json_put(object, "bytes", group->bytes);
	json_put(object, "shadow_bytes", group->shadow);
	json_put(object, "raw", group->raw);
	json_put(object, "pull", group->pull);
	json_put(object, "loader", group->loader);
	json_put(object, "refused", group->refused);
	json_put_text(object, "proof", status_proof(group->proof));
	return object;
}

static json_t *trainer_json(const struct status_trainer *trainer)
{
	json_t *object = json_object();

	json_put_text(object, "model", trainer->model);
	json_put(object, "ranks", trainer->ranks);
	json_put(object, "present", trainer->present);
	json_put(object, "tensors", trainer->tensors);
	json_put(object, "bytes", trainer->bytes);
	json_put(object, "version", trainer->version);
	json_put(object, "subsets", trainer->subsets);
	json_put(object, "subset", trainer->subset);
	json_put(object, "base", trainer->base);
	json_put_text(object, "stage", trainer->stage);
	return object;
}

static json_t *broker_json(const struct status_broker *broker)
{
	json_t *object = json_object();

	json_put(object, "rank", broker->rank);
	json_put_text(object, "name", broker->name);
	json_put_text(object, "device", broker->device);
	return object;
}

static json_t *bounce_json(const struct status_bounce *bounce)
{
	json_t *object = json_object();

	json_put_text(object, "from", bounce->from);
	json_put_text(object, "to", bounce->to);
	json_put(object, "bytes", bounce->bytes);
	return object;
}

void status_print_json(const struct msg_status_reply *status)
{
	json_t *object = json_object(), *groups = json_array(), *trainers = json_array(),
	       *brokers = json_array(), *bounces = json_array();

	json_put(object, "broker_id", status->broker_id);
	json_put(object, "pid", status->pid);
	json_put(object, "uptime_ms", status->uptime_ms);
	json_put_text(object, "library", status->library);
	json_put_text(object, "backend", status->backend);
	json_put_text(object, "device", status->device);
	json_object_set_new(object, "lead", json_boolean(status->lead));
	json_put(object, "epoch", status->epoch);
	json_put_text(object, "carrier", status->carrier);
	json_put(object, "nccl", status->nccl);
	json_put(object, "slot_bytes", status->slot_bytes);
	json_put(object, "slots", status->slots);
	json_put(object, "updates", status->updates);
	json_put(object, "aborted", status->aborted);
	json_put(object, "plans", status->plans);
	for (size_t i = 0; i < status->ngroups; i++) {
		json_array_append_new(groups, group_json(&status->groups[i]));
	}
	for (size_t i = 0; i < status->ntrainers; i++) {
		json_array_append_new(trainers, trainer_json(&status->trainers[i]));
	}
	for (size_t i = 0; i < status->nbrokers; i++) {
		json_array_append_new(brokers, broker_json(&status->brokers[i]));
	}
	for (size_t i = 0; i < status->nbounces; i++) {
		json_array_append_new(bounces, bounce_json(&status->bounces[i]));
	}
	json_object_set_new(object, "groups", groups);
	json_object_set_new(object, "trainers", trainers);
	json_object_set_new(object, "brokers", brokers);
	json_object_set_new(object, "bounces", bounces);
	json_dumpf(object, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
	putchar('\n');
	json_decref(object);
}
