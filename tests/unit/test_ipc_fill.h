/*
 * Random messages of every type, written field by field and without ipc/'s tables, so that a field
 * that the tables forget or mix up shows as a difference. What is not written is zero, so
 * that messages can be compared as bytes.
 */
#ifndef TEST_IPC_FILL_H
#define TEST_IPC_FILL_H

#include "ipc/messages.h"
#include "support/test_main.h"
#include <stdlib.h>
#include <string.h>

/* Every type that can be sent, with the keys of its map: the contract, said a second time. */
#define GROUPS_FIELDS                                                                              \
	"epoch update groups code text unwanted gather_ns local_ns wire_ns scatter_ns "            \
	"slot_types hash hashes"
#define DECISION_FIELDS "epoch update replicas wire hash slot_types text part met own"

static const struct {
	enum message_type type;
	const char *name, *keys;
} contract[] = {
	{MSG_HELLO, "hello", "protocol role pid pid_namespace library"},
	{MSG_WELCOME, "welcome", "protocol broker_id pid pid_namespace backend library"},
	{MSG_ERROR, "error", "code text"},
	{MSG_OK, "ok", "value"},
	{MSG_REGISTER, "register",
		"model replica part member members gate apply partial allocations state "
		"version update holds loader refused proof"},
	{MSG_ALLOCATION, "allocation",
		"index kind base size buffer_id uuid ipc first_chunk chunks chunk_bytes"},
	{MSG_PART, "part", "of number bytes"},
	{MSG_SEAL, "seal", "parts bytes hash"},
	{MSG_REGISTERED, "registered", "state version bytes shadow"},
	{MSG_WITHDRAW, "withdraw", ""},
	{MSG_CHECK, "check", "update version"},
	{MSG_CHECKED, "checked", "update code text"},
	{MSG_APPLY, "apply", "update version missing"},
	{MSG_APPLIED_ROUTE, "applied_route", "update code text"},
	{MSG_HOLD, "hold", "update version"},
	{MSG_READY, "ready", "word"},
	{MSG_DONE, "done", "update version outcome state text catching"},
	{MSG_RESUME, "resume", ""},
	{MSG_TRAINER, "trainer", "model rank ranks allocations"},
	{MSG_DECLARED, "declared", "manifest_hash tensors bytes version"},
	{MSG_PUBLISH, "publish", "version word flags timeout_ms subset base"},
	{MSG_RELEASED, "released", "version"},
	{MSG_REPORT, "report",
		"version outcome text tensors unwanted bytes wire_bytes wait_ns accept_ns move_ns "
		"commit_ns total_ns gather_ns local_ns wire_ns scatter_ns groups"},
	{MSG_SUBSET, "subset", "subset tensors"},
	{MSG_PUT, "put", "version word subset"},
	{MSG_CANCEL, "cancel", "version text"},
	{MSG_STATUS, "status", ""},
	{MSG_STATUS_REPLY, "status_reply",
		"broker_id pid uptime_ms backend device library carrier nccl lead epoch slot_bytes "
		"slots updates aborted plans groups trainers brokers bounces"},
	{MSG_PROGRESS, "progress", ""},
	{MSG_PROGRESS_REPLY, "progress_reply", "models"},
	{MSG_EVENTS, "events", "after"},
	{MSG_EVENT, "event",
		"number last unix_ms model ended_in version outcome text tensors unwanted bytes "
		"wire_bytes wait_ns accept_ns move_ns commit_ns total_ns gather_ns local_ns "
		"wire_ns scatter_ns groups"},
	{MSG_EXPLAIN, "explain", "name model from"},
	{MSG_EXPLAINED, "explained", "total rows"},
	{MSG_LAYOUT, "layout", "after trainers"},
	{MSG_LAID_OUT, "laid_out",
		"worker model replica part member partial pid state version parts bytes hash "
		"twins"},
	{MSG_READ, "read", "worker offset bytes allocation"},
	{MSG_READ_OUT, "read_out", "state version"},
	{MSG_JOIN, "join", "protocol broker_id host_id uuid backend nccl slot_bytes name"},
	{MSG_JOINED, "joined", "broker_id"},
	{MSG_EPOCH, "epoch", "epoch rank ranks carrier slot_bytes unique_id token brokers"},
	{MSG_EPOCH_READY, "epoch_ready", "epoch code text"},
	{MSG_MANIFEST, "manifest", "model parts bytes hash roots committed"},
	{MSG_CHOSEN, "chosen", "model manifest_hash subset hash tensors"},
	{MSG_BEGIN, "begin",
		"epoch update model version manifest_hash slot_bytes flags timeout_ms roots subset "
		"base"},
	{MSG_ACCEPT, "accept", GROUPS_FIELDS},
	{MSG_GO, "go", DECISION_FIELDS},
	{MSG_PREPARED, "prepared", GROUPS_FIELDS},
	{MSG_COMMIT, "commit", DECISION_FIELDS},
	{MSG_ABORT, "abort", DECISION_FIELDS},
	{MSG_APPLIED, "applied", GROUPS_FIELDS},
	{MSG_MOVED, "moved", GROUPS_FIELDS},
	{MSG_UNDECLARED, "undeclared", "model"},
	{MSG_BYE, "bye", "again"},
	{MSG_ALIVE, "alive", ""},
	{MSG_NONCE, "nonce", "nonce"},
	{MSG_DATA, "data", "epoch rank token"},
	{MSG_DECLARE, "declare", "model rank ranks parts bytes hash"},
	{MSG_UNDECLARE, "undeclare", "model rank released"},
	{MSG_RANK_PUBLISH, "rank_publish", "model rank version flags timeout_ms subset base"},
	{MSG_RANK_DONE, "rank_done", "model rank version"},
	{MSG_RANK_SUBSET, "rank_subset", "model rank subset tensors"},
	{MSG_RANK_PUT, "rank_put", "model rank version subset"},
	{MSG_RANK_CANCEL, "rank_cancel", "model rank version text"},
	{MSG_SETTLED, "settled", "model update version how replicas"},
	{MSG_RECALL, "recall", "model update version how brokers replicas own"},
};
#define CONTRACT_TYPES (sizeof(contract) / sizeof(contract[0]))

/* All widths that msgpack has for a number. */
static uint64_t any64(void)
{
	return test_random() >> test_random_below(64);
}

static uint32_t any32(void)
{
	return (uint32_t)(test_random() >> (32 + test_random_below(32)));
}

static uint32_t between(uint32_t min, uint32_t max)
{
	return min + (uint32_t)test_random_below(max - min + 1);
}

static void any_string(char *buf, size_t size)
{
	size_t n = test_random_below(4) ? test_random_below(size) : size - 1;

	for (size_t i = 0; i < n; i++) {
		buf[i] = (char)(1 + test_random_below(255));
	}
}

#define STRING(field) any_string(field, sizeof(field))
#define BYTES(field) test_random_fill(field, sizeof(field))

static size_t any_list(void **ret_list, size_t size, size_t most)
{
	size_t n = test_random_below(4) ? test_random_below(most < 9 ? most : 9) : most;

	*ret_list = calloc(n + 1, size);
	assert_non_null(*ret_list);
	return n;
}

static void any_u32_list(uint32_t **ret_list, size_t *ret_n, size_t most)
{
	*ret_n = any_list((void **)ret_list, sizeof(**ret_list), most);
	for (size_t i = 0; i < *ret_n; i++) {
		(*ret_list)[i] = any32();
	}
}

static struct stages any_stages(void)
{
	return (struct stages){any64(), any64(), any64(), any64()};
}

static void any_outcomes(struct group_outcome **ret_list, size_t *ret_n)
{
	*ret_n = any_list((void **)ret_list, sizeof(**ret_list), LIMIT_REPORT_GROUPS);
	for (size_t i = 0; i < *ret_n; i++) {
		struct group_outcome *group = &(*ret_list)[i];

		group->node = any32();
		group->replica = any32();
		group->part = any32();
		group->outcome = between(STREW_OUTCOME_NONE, STREW_OUTCOME_LOST);
		group->state = between(STREW_GROUP_FORMING, STREW_GROUP_LOST);
		STRING(group->text);
	}
}

static void fill_registering(struct message *message)
{
	struct msg_register *reg = &message->u.reg;
	struct msg_allocation *allocation = &message->u.allocation;

	if (message->type == MSG_REGISTER) {
		STRING(reg->model);
		reg->replica = any32();
		reg->part = any32();
		reg->member = any32();
		reg->members = any32();
		reg->gate = between(STREW_GATE_LIVE, STREW_GATE_HELD);
		reg->apply = between(STREW_APPLY_DIRECT, STREW_APPLY_STAGED);
		reg->partial = any32();
		reg->allocations = any32();
		reg->state = between(0, STREW_GROUP_LOST);
		reg->version = any64();
		reg->update = any64();
		reg->holds = between(HOLDS_ALL, HOLDS_UNKNOWN);
		return;
	}
	allocation->index = any32();
	allocation->kind = between(1, 4);
	allocation->base = any64();
	allocation->size = any64();
	allocation->buffer_id = any64();
	BYTES(allocation->uuid);
	BYTES(allocation->ipc);
	allocation->first_chunk = any32();
	allocation->chunks = any32();
	allocation->nchunk_bytes =
		any_list((void **)&allocation->chunk_bytes, sizeof(uint64_t), LIMIT_FRAME_FDS);
	for (size_t i = 0; i < allocation->nchunk_bytes; i++) {
		allocation->chunk_bytes[i] = any64();
	}
}

static void any_u64_list(uint64_t **ret_list, size_t *ret_n, size_t most)
{
	*ret_n = any_list((void **)ret_list, sizeof(**ret_list), most);
	for (size_t i = 0; i < *ret_n; i++) {
		(*ret_list)[i] = any64();
	}
}

static void fill_report(struct msg_report *report)
{
	report->version = any64();
	report->outcome = between(STREW_OUTCOME_NONE, STREW_OUTCOME_LOST);
	STRING(report->text);
	report->tensors = any64();
	report->unwanted = any64();
	report->stages = any_stages();
	report->bytes = any64();
	report->wire_bytes = any64();
	report->wait_ns = any64();
	report->accept_ns = any64();
	report->move_ns = any64();
	report->commit_ns = any64();
	report->total_ns = any64();
	any_outcomes(&report->groups, &report->ngroups);
}

static void fill_status_lists(struct msg_status_reply *reply)
{
	reply->ngroups = any_list((void **)&reply->groups, sizeof(*reply->groups), LIMIT_GROUPS);
	for (size_t i = 0; i < reply->ngroups; i++) {
		struct status_group *group = &reply->groups[i];

		STRING(group->model);
		group->replica = any32();
		group->part = any32();
		group->members = any32();
		group->present = any32();
		group->gate = between(STREW_GATE_LIVE, STREW_GATE_HELD);
		group->apply = between(STREW_APPLY_DIRECT, STREW_APPLY_STAGED);
		group->state = between(STREW_GROUP_FORMING, STREW_GROUP_LOST);
		group->version = any64();
		group->bytes = any64();
		group->shadow = any64();
		group->raw = any64();
		group->pull = any64();
		group->loader = any64();
	}
	reply->ntrainers =
		any_list((void **)&reply->trainers, sizeof(*reply->trainers), LIMIT_MODELS);
	for (size_t i = 0; i < reply->ntrainers; i++) {
		struct status_trainer *trainer = &reply->trainers[i];

		STRING(trainer->model);
		trainer->ranks = any32();
		trainer->present = any32();
		trainer->tensors = any64();
		trainer->bytes = any64();
		trainer->version = any64();
		STRING(trainer->stage);
		trainer->subsets = any32();
		trainer->subset = any32();
		trainer->base = any64();
	}
	reply->nbrokers =
		any_list((void **)&reply->brokers, sizeof(*reply->brokers), LIMIT_BROKERS);
	for (size_t i = 0; i < reply->nbrokers; i++) {
		reply->brokers[i].rank = any32();
		STRING(reply->brokers[i].name);
		STRING(reply->brokers[i].device);
	}
	reply->nbounces = any_list((void **)&reply->bounces, sizeof(*reply->bounces), LIMIT_RINGS);
	for (size_t i = 0; i < reply->nbounces; i++) {
		STRING(reply->bounces[i].from);
		STRING(reply->bounces[i].to);
		reply->bounces[i].bytes = any64();
	}
}

static void fill_status_reply(struct msg_status_reply *reply)
{
	reply->broker_id = any64();
	reply->pid = any64();
	reply->uptime_ms = any64();
	STRING(reply->backend);
	STRING(reply->device);
	STRING(reply->library);
	STRING(reply->carrier);
	reply->nccl = any32();
	reply->lead = any32();
	reply->epoch = any64();
	reply->slot_bytes = any64();
	reply->slots = any64();
	reply->updates = any64();
	reply->aborted = any64();
	reply->plans = any64();
	fill_status_lists(reply);
}

static void fill_progress_reply(struct msg_progress_reply *reply)
{
	reply->nmodels = any_list((void **)&reply->models, sizeof(*reply->models), LIMIT_MODELS);
	for (size_t i = 0; i < reply->nmodels; i++) {
		struct progress *model = &reply->models[i];

		STRING(model->model);
		STRING(model->stage);
		model->version = any64();
		model->committed = any64();
		model->done = any64();
		model->total = any64();
		STRING(model->awaited);
		model->outcome = between(STREW_OUTCOME_NONE, STREW_OUTCOME_LOST);
		STRING(model->text);
	}
}

static void fill_explained(struct msg_explained *explained)
{
	explained->total = any64();
	explained->nrows =
		any_list((void **)&explained->rows, sizeof(*explained->rows), LIMIT_EXPLAINED);
	for (size_t i = 0; i < explained->nrows; i++) {
		struct explained *row = &explained->rows[i];

		row->kind = between(EXPLAINED_HELD, EXPLAINED_SLOT);
		STRING(row->model);
		STRING(row->tensor);
		row->dtype = any32();
		STRING(row->shape);
		STRING(row->start);
		STRING(row->extent);
		row->pid = any64();
		STRING(row->where);
		row->rank = any32();
		row->replica = any32();
		row->part = any32();
		row->member = any32();
		STRING(row->view);
		STRING(row->parameter);
		row->parameter_dtype = any32();
		STRING(row->parameter_shape);
		row->cast = between(0, 1);
		row->staged = between(0, 1);
		row->state = between(0, STREW_GROUP_LOST);
		row->version = any64();
		row->here = between(0, 1);
		row->allocation = any32();
		row->offset = any64();
		STRING(row->stride);
		STRING(row->device);
		STRING(row->handle);
		STRING(row->route);
		STRING(row->bounce);
		row->worker = any64();
		row->bucket = any64();
		row->sum = any64();
		row->fold = any32();
		row->nodes = any32();
	}
}

static void fill_reading(struct message *message)
{
	struct msg_laid_out *laid_out = &message->u.laid_out;

	switch (message->type) {
	case MSG_LAYOUT:
		message->u.layout.after = any64();
		break;
	case MSG_LAID_OUT:
		laid_out->worker = any64();
		STRING(laid_out->model);
		laid_out->replica = any32();
		laid_out->part = any32();
		laid_out->member = any32();
		laid_out->partial = between(0, 1);
		laid_out->pid = any64();
		laid_out->state = between(0, STREW_GROUP_LOST);
		laid_out->version = any64();
		laid_out->parts = any32();
		laid_out->bytes = any64();
		laid_out->hash = any64();
		any_u64_list(&laid_out->twins, &laid_out->ntwins, LIMIT_ALLOCATIONS);
		break;
	case MSG_READ:
		message->u.read.worker = any64();
		message->u.read.offset = any64();
		message->u.read.bytes = any64();
		message->u.read.allocation = any32();
		break;
	default:
		message->u.read_out.state = between(0, STREW_GROUP_LOST);
		message->u.read_out.version = any64();
	}
}

static void fill_joining(struct message *message)
{
	struct msg_join *join = &message->u.join;
	struct msg_epoch *epoch = &message->u.epoch;

	if (message->type == MSG_JOIN) {
		join->protocol = any32();
		join->broker_id = any64();
		join->host_id = any64();
		BYTES(join->uuid);
		STRING(join->backend);
		join->nccl = any32();
		join->slot_bytes = any64();
		STRING(join->name);
		return;
	}
	epoch->epoch = any64();
	epoch->rank = between(0, LIMIT_BROKERS - 1);
	epoch->ranks = between(1, LIMIT_BROKERS);
	epoch->carrier = between(CARRIER_NONE, CARRIER_NCCL);
	epoch->slot_bytes = any64();
	BYTES(epoch->unique_id);
	BYTES(epoch->token);
	any_u64_list(&epoch->brokers, &epoch->nbrokers, LIMIT_BROKERS);
}

static void any_names(struct group_name **ret_list, size_t *ret_n)
{
	*ret_n = any_list((void **)ret_list, sizeof(**ret_list), LIMIT_GROUPS);
	for (size_t i = 0; i < *ret_n; i++) {
		(*ret_list)[i] = (struct group_name){any32(), any32()};
	}
}

static void fill_recall(struct message *message)
{
	struct msg_recall *recall = &message->u.recall;
	struct msg_settled *settled = &message->u.settled;

	if (message->type == MSG_RECALL) {
		STRING(recall->model);
		recall->update = any64();
		recall->version = any64();
		recall->how = between(RECALL_PREPARED, RECALL_SEEN);
		any_u64_list(&recall->brokers, &recall->nbrokers, LIMIT_BROKERS);
		any_u32_list(&recall->replicas, &recall->nreplicas, LIMIT_REPORT_GROUPS);
		any_names(&recall->own, &recall->nown);
		return;
	}
	STRING(settled->model);
	settled->update = any64();
	settled->version = any64();
	settled->how = between(RECALL_ABORTED, RECALL_SEEN);
	any_u32_list(&settled->replicas, &settled->nreplicas, LIMIT_REPORT_GROUPS);
}

static void fill_update(struct message *message)
{
	struct msg_begin *begin = &message->u.begin;
	struct msg_groups *groups = &message->u.groups;
	struct msg_decision *decision = &message->u.decision;

	switch (message->type) {
	case MSG_BEGIN:
		begin->epoch = any64();
		begin->update = any64();
		STRING(begin->model);
		begin->version = any64();
		begin->manifest_hash = any64();
		begin->slot_bytes = any64();
		begin->flags = any32();
		begin->timeout_ms = any32();
		any_u32_list(&begin->roots, &begin->nroots, LIMIT_RANKS);
		begin->subset = between(0, LIMIT_SUBSETS);
		begin->base = any64();
		break;
	case MSG_GO:
	case MSG_COMMIT:
	case MSG_ABORT:
		decision->epoch = any64();
		decision->update = any64();
		any_u32_list(&decision->replicas, &decision->nreplicas, LIMIT_REPORT_GROUPS);
		decision->wire = any32();
		decision->hash = any32() & 1;
		any_u32_list(&decision->slot_types, &decision->nslot_types, LIMIT_SLOT_TYPES);
		STRING(decision->text);
		decision->part = between(0, LIMIT_SUBSETS);
		any_u32_list(&decision->met, &decision->nmet, LIMIT_REPORT_GROUPS);
		any_names(&decision->own, &decision->nown);
		break;
	default:
		groups->epoch = any64();
		groups->update = any64();
		any_outcomes(&groups->groups, &groups->ngroups);
		groups->code = any32();
		STRING(groups->text);
		groups->unwanted = any64();
		any_u32_list(&groups->slot_types, &groups->nslot_types, LIMIT_SLOT_TYPES);
		groups->stages = any_stages();
		groups->hash = any32() & 1;
		any_u64_list(&groups->hashes, &groups->nhashes, LIMIT_HASHES);
		break;
	}
}

static void fill_rank(struct message *message)
{
	struct msg_declare *declare = &message->u.declare;
	struct msg_undeclare *undeclare = &message->u.undeclare;
	struct msg_rank_publish *publish = &message->u.rank_publish;
	struct msg_rank_put *put = &message->u.rank_put;
	struct msg_rank_cancel *cancel = &message->u.rank_cancel;
	struct msg_rank_done *done = &message->u.rank_done;

	switch (message->type) {
	case MSG_DECLARE:
		STRING(declare->model);
		declare->rank = between(0, LIMIT_RANKS - 1);
		declare->ranks = between(1, LIMIT_RANKS);
		declare->parts = any32();
		declare->bytes = any64();
		declare->hash = any64();
		break;
	case MSG_UNDECLARED:
		STRING(message->u.undeclared.model);
		break;
	case MSG_UNDECLARE:
		STRING(undeclare->model);
		undeclare->rank = between(0, LIMIT_RANKS - 1);
		undeclare->released = between(0, 1);
		break;
	case MSG_RANK_PUT:
		STRING(put->model);
		put->rank = between(0, LIMIT_RANKS - 1);
		put->version = any64();
		put->subset = between(0, LIMIT_SUBSETS);
		break;
	case MSG_RANK_CANCEL:
		STRING(cancel->model);
		cancel->rank = between(0, LIMIT_RANKS - 1);
		cancel->version = any64();
		STRING(cancel->text);
		break;
	case MSG_RANK_PUBLISH:
		STRING(publish->model);
		publish->rank = between(0, LIMIT_RANKS - 1);
		publish->version = any64();
		publish->flags = any32();
		publish->timeout_ms = any32();
		publish->subset = between(0, LIMIT_SUBSETS);
		publish->base = any64();
		break;
	default:
		STRING(done->model);
		done->rank = between(0, LIMIT_RANKS - 1);
		done->version = any64();
		break;
	}
}

static void fill_session(struct message *message)
{
	switch (message->type) {
	case MSG_HELLO:
		message->u.hello.protocol = any32();
		message->u.hello.role = between(ROLE_WORKER, ROLE_OBSERVER);
		message->u.hello.pid = any64();
		message->u.hello.pid_namespace = any64();
		STRING(message->u.hello.library);
		break;
	case MSG_WELCOME:
		message->u.welcome.protocol = any32();
		message->u.welcome.broker_id = any64();
		message->u.welcome.pid = any64();
		message->u.welcome.pid_namespace = any64();
		STRING(message->u.welcome.backend);
		STRING(message->u.welcome.library);
		break;
	case MSG_ERROR:
		message->u.error.code = any32();
		STRING(message->u.error.text);
		break;
	case MSG_REGISTERED:
		message->u.registered.state = between(STREW_GROUP_FORMING, STREW_GROUP_LOST);
		message->u.registered.version = any64();
		message->u.registered.bytes = any64();
		message->u.registered.shadow = any64();
		break;
	case MSG_CHECK:
	case MSG_HOLD: /* alike */
		message->u.check.update = any64();
		message->u.check.version = any64();
		break;
	case MSG_CHECKED:
	case MSG_APPLIED_ROUTE: /* alike */
		message->u.checked.update = any64();
		message->u.checked.code = any32();
		STRING(message->u.checked.text);
		break;
	case MSG_DONE:
		message->u.done.update = any64();
		message->u.done.version = any64();
		message->u.done.outcome = between(STREW_OUTCOME_NONE, STREW_OUTCOME_LOST);
		message->u.done.state = between(STREW_GROUP_FORMING, STREW_GROUP_LOST);
		STRING(message->u.done.text);
		message->u.done.catching = between(0, 1);
		break;
	case MSG_TRAINER:
		STRING(message->u.trainer.model);
		message->u.trainer.rank = any32();
		message->u.trainer.ranks = any32();
		message->u.trainer.allocations = any32();
		break;
	case MSG_DECLARED:
		message->u.declared.manifest_hash = any64();
		message->u.declared.tensors = any64();
		message->u.declared.bytes = any64();
		message->u.declared.version = any64();
		break;
	case MSG_PUT:
		message->u.put.version = any64();
		message->u.put.word = any64();
		message->u.put.subset = between(0, LIMIT_SUBSETS);
		break;
	case MSG_CANCEL:
		message->u.cancel.version = any64();
		STRING(message->u.cancel.text);
		break;
	default:
		assert_int_equal(message->type, MSG_PUBLISH);
		message->u.publish.version = any64();
		message->u.publish.word = any64();
		message->u.publish.flags = any32();
		message->u.publish.timeout_ms = any32();
		message->u.publish.subset = between(0, LIMIT_SUBSETS);
		message->u.publish.base = any64();
		break;
	}
}

/* The bytes of a part are borrowed from here. */
static uint8_t part_bytes[4096];

static void fill_subset(struct message *message)
{
	struct msg_subset *subset = &message->u.subset;
	struct msg_chosen *chosen = &message->u.chosen;
	struct msg_rank_subset *rank = &message->u.rank_subset;
	size_t n = test_random_below(sizeof(part_bytes));

	test_random_fill(part_bytes, sizeof(part_bytes));
	if (message->type == MSG_SUBSET) {
		subset->subset = between(1, LIMIT_SUBSETS);
		subset->tensors = part_bytes;
		subset->ntensors = n;
	} else if (message->type == MSG_CHOSEN) {
		STRING(chosen->model);
		chosen->manifest_hash = any64();
		chosen->subset = between(1, LIMIT_SUBSETS);
		chosen->hash = any64();
		chosen->tensors = part_bytes;
		chosen->ntensors = n;
	} else {
		STRING(rank->model);
		rank->rank = between(0, LIMIT_RANKS - 1);
		rank->subset = between(1, LIMIT_SUBSETS);
		rank->tensors = part_bytes;
		rank->ntensors = n;
	}
}

static void fill_message(struct message *message, enum message_type type)
{
	message_init(message, type, test_random());
	switch (type) {
	case MSG_WITHDRAW:
	case MSG_RESUME:
	case MSG_STATUS:
	case MSG_PROGRESS:
	case MSG_ALIVE:
		break; /* an empty map */
	case MSG_BYE:
		message->u.bye.again = between(0, 1);
		break;
	case MSG_OK:
	case MSG_READY:
	case MSG_RELEASED:
	case MSG_JOINED: /* one number each */
		message->u.ok.value = any64();
		break;
	case MSG_REGISTER:
	case MSG_ALLOCATION:
		fill_registering(message);
		break;
	case MSG_APPLY:
		test_random_fill(part_bytes, sizeof(part_bytes));
		message->u.apply.update = any64();
		message->u.apply.version = any64();
		message->u.apply.missing = part_bytes;
		message->u.apply.nmissing = test_random_below(sizeof(part_bytes));
		break;
	case MSG_SUBSET:
	case MSG_CHOSEN:
	case MSG_RANK_SUBSET:
		fill_subset(message);
		break;
	case MSG_PART:
		test_random_fill(part_bytes, sizeof(part_bytes));
		message->u.part.of = between(PART_LAYOUT, PART_MANIFEST);
		message->u.part.number = any32();
		message->u.part.bytes = part_bytes;
		message->u.part.nbytes = test_random_below(sizeof(part_bytes));
		break;
	case MSG_SEAL:
		message->u.seal.parts = any32();
		message->u.seal.bytes = any64();
		message->u.seal.hash = any64();
		break;
	case MSG_REPORT:
		fill_report(&message->u.report);
		break;
	case MSG_STATUS_REPLY:
		fill_status_reply(&message->u.status_reply);
		break;
	case MSG_LAYOUT:
	case MSG_LAID_OUT:
	case MSG_READ:
	case MSG_READ_OUT:
		fill_reading(message);
		break;
	case MSG_EXPLAIN:
		STRING(message->u.explain.name);
		STRING(message->u.explain.model);
		message->u.explain.from = any64();
		break;
	case MSG_EXPLAINED:
		fill_explained(&message->u.explained);
		break;
	case MSG_EVENTS:
		message->u.events.after = any64();
		break;
	case MSG_EVENT:
		message->u.event.number = any64();
		message->u.event.last = any64();
		message->u.event.unix_ms = any64();
		STRING(message->u.event.model);
		STRING(message->u.event.ended_in);
		fill_report(&message->u.event.report);
		break;
	case MSG_PROGRESS_REPLY:
		fill_progress_reply(&message->u.progress_reply);
		break;
	case MSG_JOIN:
	case MSG_EPOCH:
		fill_joining(message);
		break;
	case MSG_EPOCH_READY:
		message->u.epoch_ready.epoch = any64();
		message->u.epoch_ready.code = any32();
		STRING(message->u.epoch_ready.text);
		break;
	case MSG_MANIFEST:
		STRING(message->u.manifest.model);
		message->u.manifest.parts = any32();
		message->u.manifest.bytes = any64();
		message->u.manifest.hash = any64();
		any_u64_list(&message->u.manifest.roots, &message->u.manifest.nroots, LIMIT_RANKS);
		message->u.manifest.committed = any64();
		break;
	case MSG_BEGIN:
	case MSG_ACCEPT:
	case MSG_GO:
	case MSG_MOVED:
	case MSG_PREPARED:
	case MSG_COMMIT:
	case MSG_ABORT:
	case MSG_APPLIED:
		fill_update(message);
		break;
	case MSG_DECLARE:
	case MSG_UNDECLARED:
	case MSG_UNDECLARE:
	case MSG_RANK_PUBLISH:
	case MSG_RANK_PUT:
	case MSG_RANK_CANCEL:
	case MSG_RANK_DONE:
		fill_rank(message);
		break;
	case MSG_RECALL:
	case MSG_SETTLED:
		fill_recall(message);
		break;
	case MSG_NONCE:
		BYTES(message->u.nonce.nonce);
		break;
	case MSG_DATA:
		message->u.data.epoch = any64();
		message->u.data.rank = any32();
		BYTES(message->u.data.token);
		break;
	default:
		fill_session(message);
		break;
	}
}

#define ARRAYS_MAX 4 /* of one message */

/* Where the union has a pointer to an array, its length and the size of an element. */
struct borrowed {
	void **pointer;
	size_t bytes;
};

static unsigned find_arrays(struct message *message, struct borrowed ret[ARRAYS_MAX])
{
	struct msg_status_reply *status = &message->u.status_reply;
	struct msg_recall *recall = &message->u.recall;

	switch (message->type) {
	case MSG_ALLOCATION:
		ret[0] = (struct borrowed){(void **)&message->u.allocation.chunk_bytes,
			message->u.allocation.nchunk_bytes * sizeof(uint64_t)};
		return 1;
	case MSG_APPLY:
		ret[0] = (struct borrowed){
			(void **)(uintptr_t)&message->u.apply.missing, message->u.apply.nmissing};
		return 1;
	case MSG_SUBSET:
		ret[0] = (struct borrowed){
			(void **)(uintptr_t)&message->u.subset.tensors, message->u.subset.ntensors};
		return 1;
	case MSG_CHOSEN:
		ret[0] = (struct borrowed){
			(void **)(uintptr_t)&message->u.chosen.tensors, message->u.chosen.ntensors};
		return 1;
	case MSG_RANK_SUBSET:
		ret[0] = (struct borrowed){(void **)(uintptr_t)&message->u.rank_subset.tensors,
			message->u.rank_subset.ntensors};
		return 1;
	case MSG_PART:
		ret[0] = (struct borrowed){
			(void **)(uintptr_t)&message->u.part.bytes, message->u.part.nbytes};
		return 1;
	case MSG_REPORT:
		ret[0] = (struct borrowed){(void **)&message->u.report.groups,
			message->u.report.ngroups * sizeof(struct group_outcome)};
		return 1;
	case MSG_ACCEPT:
	case MSG_MOVED:
	case MSG_PREPARED:
	case MSG_APPLIED:
		ret[0] = (struct borrowed){(void **)&message->u.groups.groups,
			message->u.groups.ngroups * sizeof(struct group_outcome)};
		ret[1] = (struct borrowed){(void **)&message->u.groups.slot_types,
			message->u.groups.nslot_types * sizeof(uint32_t)};
		ret[2] = (struct borrowed){(void **)&message->u.groups.hashes,
			message->u.groups.nhashes * sizeof(uint64_t)};
		return 3;
	case MSG_GO:
	case MSG_COMMIT:
	case MSG_ABORT:
		ret[0] = (struct borrowed){(void **)&message->u.decision.replicas,
			message->u.decision.nreplicas * sizeof(uint32_t)};
		ret[1] = (struct borrowed){(void **)&message->u.decision.slot_types,
			message->u.decision.nslot_types * sizeof(uint32_t)};
		ret[2] = (struct borrowed){(void **)&message->u.decision.met,
			message->u.decision.nmet * sizeof(uint32_t)};
		ret[3] = (struct borrowed){(void **)&message->u.decision.own,
			message->u.decision.nown * sizeof(struct group_name)};
		return 4;
	case MSG_EPOCH:
		ret[0] = (struct borrowed){(void **)&message->u.epoch.brokers,
			message->u.epoch.nbrokers * sizeof(uint64_t)};
		return 1;
	case MSG_RECALL:
		ret[0] = (struct borrowed){
			(void **)&recall->brokers, recall->nbrokers * sizeof(uint64_t)};
		ret[1] = (struct borrowed){
			(void **)&recall->replicas, recall->nreplicas * sizeof(uint32_t)};
		ret[2] = (struct borrowed){
			(void **)&recall->own, recall->nown * sizeof(struct group_name)};
		return 3;
	case MSG_SETTLED:
		ret[0] = (struct borrowed){(void **)&message->u.settled.replicas,
			message->u.settled.nreplicas * sizeof(uint32_t)};
		return 1;
	case MSG_MANIFEST:
		ret[0] = (struct borrowed){(void **)&message->u.manifest.roots,
			message->u.manifest.nroots * sizeof(uint64_t)};
		return 1;
	case MSG_BEGIN:
		ret[0] = (struct borrowed){(void **)&message->u.begin.roots,
			message->u.begin.nroots * sizeof(uint32_t)};
		return 1;
	case MSG_STATUS_REPLY:
		ret[0] = (struct borrowed){
			(void **)&status->groups, status->ngroups * sizeof(*status->groups)};
		ret[1] = (struct borrowed){
			(void **)&status->trainers, status->ntrainers * sizeof(*status->trainers)};
		ret[2] = (struct borrowed){
			(void **)&status->brokers, status->nbrokers * sizeof(*status->brokers)};
		ret[3] = (struct borrowed){
			(void **)&status->bounces, status->nbounces * sizeof(*status->bounces)};
		return 4;
	case MSG_LAID_OUT:
		ret[0] = (struct borrowed){(void **)&message->u.laid_out.twins,
			message->u.laid_out.ntwins * sizeof(uint64_t)};
		return 1;
	case MSG_EXPLAINED:
		ret[0] = (struct borrowed){(void **)&message->u.explained.rows,
			message->u.explained.nrows * sizeof(struct explained)};
		return 1;
	case MSG_EVENT:
		ret[0] = (struct borrowed){(void **)&message->u.event.report.groups,
			message->u.event.report.ngroups * sizeof(struct group_outcome)};
		return 1;
	case MSG_PROGRESS_REPLY:
		ret[0] = (struct borrowed){(void **)&message->u.progress_reply.models,
			message->u.progress_reply.nmodels * sizeof(struct progress)};
		return 1;
	default:
		return 0;
	}
}

/* Compares type, serial, what arrays hold, and all other bytes of the union. */
static void assert_same(struct message *a, struct message *b)
{
	struct borrowed of_a[ARRAYS_MAX], of_b[ARRAYS_MAX];
	unsigned n = find_arrays(a, of_a);
	void *kept[2][ARRAYS_MAX] = {{NULL}};

	assert_int_equal(a->type, b->type);
	assert_true(a->serial == b->serial);
	assert_int_equal(n, find_arrays(b, of_b));
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(of_a[i].bytes, of_b[i].bytes);
		assert_memory_equal(*of_a[i].pointer, *of_b[i].pointer, of_a[i].bytes);
		kept[0][i] = *of_a[i].pointer;
		kept[1][i] = *of_b[i].pointer;
		*of_a[i].pointer = *of_b[i].pointer = NULL;
	}
	assert_memory_equal(&a->u, &b->u, sizeof(a->u));
	for (unsigned i = 0; i < n; i++) {
		*of_a[i].pointer = kept[0][i];
		*of_b[i].pointer = kept[1][i];
	}
}

#endif
