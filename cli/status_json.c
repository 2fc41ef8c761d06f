/* strew status --json: the same facts for scripts. Keys are added, never changed. */
#include "base/util.h"
#include "cli/cli.h"
#include <jansson.h>
#include <stdio.h>
#include <strew/strew.h>

/* 64-bit numbers beyond what a JSON integer of jansson holds are given as strings. */
static void put(json_t *object, const char *key, uint64_t value)
{
	char text[24];

	if (value <= INT64_MAX) {
		json_object_set_new(object, key, json_integer((json_int_t)value));
		return;
	}
	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	json_object_set_new(object, key, json_string(text));
}

/* A peer's string may not be UTF-8; then its bytes beyond ASCII become '?'. */
static void put_text(json_t *object, const char *key, const char *text)
{
	json_t *string = json_string(text);
	char ascii[256];

	if (!string) {
		string_copy(ascii, sizeof(ascii), text);
		for (char *p = ascii; *p; p++) {
			*p = (unsigned char)*p > 0x7e ? '?' : *p;
		}
		string = json_string(ascii);
	}
	json_object_set_new(object, key, string);
}

static json_t *group_json(const struct status_group *group)
{
	json_t *object = json_object();

	put_text(object, "model", group->model);
	put(object, "replica", group->replica);
	put(object, "part", group->part);
	put(object, "members", group->members);
	put(object, "present", group->present);
	put_text(object, "gate", status_gate(group->gate));
	put_text(object, "apply", status_apply(group->apply));
	put_text(object, "state", strew_group_state_name((enum strew_group_state)group->state));
	put(object, "version", group->version);
	put(object, "bytes", group->bytes);
	put(object, "shadow_bytes", group->shadow);
	put(object, "raw", group->raw);
	put(object, "pull", group->pull);
	put(object, "loader", group->loader);
	return object;
}

static json_t *trainer_json(const struct status_trainer *trainer)
{
	json_t *object = json_object();

	put_text(object, "model", trainer->model);
	put(object, "ranks", trainer->ranks);
	put(object, "present", trainer->present);
	put(object, "tensors", trainer->tensors);
	put(object, "bytes", trainer->bytes);
	put(object, "version", trainer->version);
	put_text(object, "stage", trainer->stage);
	return object;
}

static json_t *broker_json(const struct status_broker *broker)
{
	json_t *object = json_object();

	put(object, "rank", broker->rank);
	put_text(object, "name", broker->name);
	put_text(object, "device", broker->device);
	return object;
}

void status_print_json(const struct msg_status_reply *status)
{
	json_t *object = json_object(), *groups = json_array(), *trainers = json_array(),
	       *brokers = json_array();

	put(object, "broker_id", status->broker_id);
	put(object, "pid", status->pid);
	put(object, "uptime_ms", status->uptime_ms);
	put_text(object, "library", status->library);
	put_text(object, "backend", status->backend);
	put_text(object, "device", status->device);
	json_object_set_new(object, "lead", json_boolean(status->lead));
	put(object, "epoch", status->epoch);
	put_text(object, "carrier", status->carrier);
	put(object, "nccl", status->nccl);
	put(object, "slot_bytes", status->slot_bytes);
	put(object, "slots", status->slots);
	put(object, "updates", status->updates);
	put(object, "aborted", status->aborted);
	for (size_t i = 0; i < status->ngroups; i++) {
		json_array_append_new(groups, group_json(&status->groups[i]));
	}
	for (size_t i = 0; i < status->ntrainers; i++) {
		json_array_append_new(trainers, trainer_json(&status->trainers[i]));
	}
	for (size_t i = 0; i < status->nbrokers; i++) {
		json_array_append_new(brokers, broker_json(&status->brokers[i]));
	}
	json_object_set_new(object, "groups", groups);
	json_object_set_new(object, "trainers", trainers);
	json_object_set_new(object, "brokers", brokers);
	json_dumpf(object, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
	putchar('\n');
	json_decref(object);
}
