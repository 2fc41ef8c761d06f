/*
 * The tables of docs/protocol.md. F_… macros keep one field a line: key, struct,
 * member, and what else its kind needs.
 */
#include "ipc/messages.h"
#include "base/util.h"
#include "ipc/frame.h"
#include "ipc/scan.h"
#include "ipc/schema.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SIZE(type, member) sizeof(((struct type *)0)->member)
#define U32(key, type, member)                                                                     \
	{                                                                                          \
		key, FIELD_U32, offsetof(struct type, member), 0, 0, 0, 0, NULL                    \
	}
#define RANGE(key, type, member, min, max)                                                         \
	{                                                                                          \
		key, FIELD_U32, offsetof(struct type, member), 0, min, max, 0, NULL                \
	}
#define U64(key, type, member)                                                                     \
	{                                                                                          \
		key, FIELD_U64, offsetof(struct type, member), 0, 0, 0, 0, NULL                    \
	}
#define STR(key, type, member)                                                                     \
	{                                                                                          \
		key, FIELD_STRING, offsetof(struct type, member), SIZE(type, member), 0, 0, 0,     \
			NULL                                                                       \
	}
#define BYTES(key, type, member)                                                                   \
	{                                                                                          \
		key, FIELD_BYTES, offsetof(struct type, member), SIZE(type, member), 0, 0, 0, NULL \
	}
#define BLOB(key, type, member, counter)                                                           \
	{                                                                                          \
		key, FIELD_BLOB, offsetof(struct type, member), 0, 0, 0,                           \
			offsetof(struct type, counter), NULL                                       \
	}
#define LIST(key, kind, type, member, counter, most)                                               \
	{                                                                                          \
		key, kind, offsetof(struct type, member), 0, 0, most,                              \
			offsetof(struct type, counter), NULL                                       \
	}
#define STRUCTS(key, type, member, counter, most, sub)                                             \
	{                                                                                          \
		key, FIELD_STRUCTS, offsetof(struct type, member),                                 \
			sizeof(*((struct type *)0)->member), 0, most,                              \
			offsetof(struct type, counter), &sub                                       \
	}
#define TABLE(name)                                                                                \
	_Static_assert(ARRAY_LEN(name##_fields) <= FIELDS_MAX, #name " has too many fields");      \
	static const struct table name = {name##_fields, ARRAY_LEN(name##_fields)}

static const struct field hello_fields[] = {
	U32("protocol", msg_hello, protocol),
	RANGE("role", msg_hello, role, ROLE_WORKER, ROLE_OBSERVER),
	U64("pid", msg_hello, pid),
	U64("pid_namespace", msg_hello, pid_namespace),
	STR("library", msg_hello, library),
};
TABLE(hello);

static const struct field welcome_fields[] = {
	U32("protocol", msg_welcome, protocol),
	U64("broker_id", msg_welcome, broker_id),
	U64("pid", msg_welcome, pid),
	U64("pid_namespace", msg_welcome, pid_namespace),
	STR("backend", msg_welcome, backend),
	STR("library", msg_welcome, library),
};
TABLE(welcome);

static const struct field error_fields[] = {
	U32("code", msg_error, code),
	STR("text", msg_error, text),
};
TABLE(error);

static const struct field ok_fields[] = {U64("value", msg_ok, value)};
TABLE(ok);

static const struct field register__fields[] = {
	STR("model", msg_register, model),
	U32("replica", msg_register, replica),
	U32("part", msg_register, part),
	U32("member", msg_register, member),
	U32("members", msg_register, members),
	RANGE("gate", msg_register, gate, STREW_GATE_LIVE, STREW_GATE_HELD),
	RANGE("apply", msg_register, apply, STREW_APPLY_DIRECT, STREW_APPLY_STAGED),
	U32("partial", msg_register, partial),
	U32("allocations", msg_register, allocations),
	RANGE("state", msg_register, state, 0, STREW_GROUP_LOST),
	U64("version", msg_register, version),
	U64("update", msg_register, update),
	RANGE("holds", msg_register, holds, HOLDS_ALL, HOLDS_UNKNOWN),
	U32("loader", msg_register, loader),
	U32("refused", msg_register, refused),
	RANGE("proof", msg_register, proof, 0, STREW_PROVED),
};
TABLE(register_);

static const struct field allocation_fields[] = {
	U32("index", msg_allocation, index),
	RANGE("kind", msg_allocation, kind, 1, 4),
	U64("base", msg_allocation, base),
	U64("size", msg_allocation, size),
	U64("buffer_id", msg_allocation, buffer_id),
	BYTES("uuid", msg_allocation, uuid),
	BYTES("ipc", msg_allocation, ipc),
	U32("first_chunk", msg_allocation, first_chunk),
	U32("chunks", msg_allocation, chunks),
	LIST("chunk_bytes", FIELD_U64_LIST, msg_allocation, chunk_bytes, nchunk_bytes,
		LIMIT_FRAME_FDS),
};
TABLE(allocation);

static const struct field part_fields[] = {
	RANGE("of", msg_part, of, PART_LAYOUT, PART_MANIFEST),
	U32("number", msg_part, number),
	BLOB("bytes", msg_part, bytes, nbytes),
};
TABLE(part);

static const struct field seal_fields[] = {
	U32("parts", msg_seal, parts),
	U64("bytes", msg_seal, bytes),
	U64("hash", msg_seal, hash),
};
TABLE(seal);

static const struct field registered_fields[] = {
	RANGE("state", msg_registered, state, STREW_GROUP_FORMING, STREW_GROUP_LOST),
	U64("version", msg_registered, version),
	U64("bytes", msg_registered, bytes),
	U64("shadow", msg_registered, shadow),
};
TABLE(registered);

static const struct field check_fields[] = {
	U64("update", msg_check, update),
	U64("version", msg_check, version),
};
TABLE(check);

static const struct field checked_fields[] = {
	U64("update", msg_checked, update),
	U32("code", msg_checked, code),
	STR("text", msg_checked, text),
};
TABLE(checked);

static const struct field apply_fields[] = {
	U64("update", msg_apply, update),
	U64("version", msg_apply, version),
	BLOB("missing", msg_apply, missing, nmissing),
};
TABLE(apply);

static const struct field hold_fields[] = {
	U64("update", msg_hold, update),
	U64("version", msg_hold, version),
};
TABLE(hold);

static const struct field ready_fields[] = {U64("word", msg_ready, word)};
TABLE(ready);

static const struct field done_fields[] = {
	U64("update", msg_done, update),
	U64("version", msg_done, version),
	RANGE("outcome", msg_done, outcome, STREW_OUTCOME_NONE, STREW_OUTCOME_LOST),
	RANGE("state", msg_done, state, STREW_GROUP_FORMING, STREW_GROUP_LOST),
	STR("text", msg_done, text),
	RANGE("catching", msg_done, catching, 0, 1),
};
TABLE(done);

static const struct field trainer_fields[] = {
	STR("model", msg_trainer, model),
	U32("rank", msg_trainer, rank),
	U32("ranks", msg_trainer, ranks),
	U32("allocations", msg_trainer, allocations),
};
TABLE(trainer);

static const struct field declared_fields[] = {
	U64("manifest_hash", msg_declared, manifest_hash),
	U64("tensors", msg_declared, tensors),
	U64("bytes", msg_declared, bytes),
	U64("version", msg_declared, version),
};
TABLE(declared);

static const struct field publish_fields[] = {
	U64("version", msg_publish, version),
	U64("word", msg_publish, word),
	U32("flags", msg_publish, flags),
	U32("timeout_ms", msg_publish, timeout_ms),
	RANGE("subset", msg_publish, subset, 0, LIMIT_SUBSETS),
	U64("base", msg_publish, base),
};
TABLE(publish);

static const struct field put_fields[] = {
	U64("version", msg_put, version),
	U64("word", msg_put, word),
	RANGE("subset", msg_put, subset, 0, LIMIT_SUBSETS),
};
TABLE(put);

static const struct field cancel_fields[] = {
	U64("version", msg_cancel, version),
	STR("text", msg_cancel, text),
};
TABLE(cancel);

static const struct field subset_fields[] = {
	RANGE("subset", msg_subset, subset, 1, LIMIT_SUBSETS),
	BLOB("tensors", msg_subset, tensors, ntensors),
};
TABLE(subset);

static const struct field released_fields[] = {U64("version", msg_released, version)};
TABLE(released);

static const struct field outcome_fields[] = {
	U32("node", group_outcome, node),
	U32("replica", group_outcome, replica),
	U32("part", group_outcome, part),
	RANGE("outcome", group_outcome, outcome, STREW_OUTCOME_NONE, STREW_OUTCOME_LOST),
	RANGE("state", group_outcome, state, STREW_GROUP_FORMING, STREW_GROUP_LOST),
	STR("text", group_outcome, text),
};
TABLE(outcome);

static const struct field report_fields[] = {
	U64("version", msg_report, version),
	RANGE("outcome", msg_report, outcome, STREW_OUTCOME_NONE, STREW_OUTCOME_LOST),
	STR("text", msg_report, text),
	U64("tensors", msg_report, tensors),
	U64("unwanted", msg_report, unwanted),
	U64("bytes", msg_report, bytes),
	U64("wire_bytes", msg_report, wire_bytes),
	U64("wait_ns", msg_report, wait_ns),
	U64("accept_ns", msg_report, accept_ns),
	U64("move_ns", msg_report, move_ns),
	U64("commit_ns", msg_report, commit_ns),
	U64("total_ns", msg_report, total_ns),
	U64("gather_ns", msg_report, stages.gather_ns),
	U64("local_ns", msg_report, stages.local_ns),
	U64("wire_ns", msg_report, stages.wire_ns),
	U64("scatter_ns", msg_report, stages.scatter_ns),
	STRUCTS("groups", msg_report, groups, ngroups, LIMIT_REPORT_GROUPS, outcome),
};
TABLE(report);

static const struct table status = {NULL, 0};

static const struct field status_group_fields[] = {
	STR("model", status_group, model),
	U32("replica", status_group, replica),
	U32("part", status_group, part),
	U32("members", status_group, members),
	U32("present", status_group, present),
	RANGE("gate", status_group, gate, STREW_GATE_LIVE, STREW_GATE_HELD),
	RANGE("apply", status_group, apply, STREW_APPLY_DIRECT, STREW_APPLY_STAGED),
	RANGE("state", status_group, state, STREW_GROUP_FORMING, STREW_GROUP_LOST),
	U64("version", status_group, version),
	U64("bytes", status_group, bytes),
	U64("shadow", status_group, shadow),
	U64("raw", status_group, raw),
	U64("pull", status_group, pull),
	U64("loader", status_group, loader),
	U64("refused", status_group, refused),
	RANGE("proof", status_group, proof, 0, STREW_PROVED),
};
TABLE(status_group);

static const struct field status_trainer_fields[] = {
	STR("model", status_trainer, model),
	U32("ranks", status_trainer, ranks),
	U32("present", status_trainer, present),
	U64("tensors", status_trainer, tensors),
	U64("bytes", status_trainer, bytes),
	U64("version", status_trainer, version),
	STR("stage", status_trainer, stage),
	U32("subsets", status_trainer, subsets),
	U32("subset", status_trainer, subset),
	U64("base", status_trainer, base),
};
TABLE(status_trainer);

static const struct field status_broker_fields[] = {
	U32("rank", status_broker, rank),
	STR("name", status_broker, name),
	STR("device", status_broker, device),
};
TABLE(status_broker);

static const struct field status_bounce_fields[] = {
	STR("from", status_bounce, from),
	STR("to", status_bounce, to),
	U64("bytes", status_bounce, bytes),
};
TABLE(status_bounce);

static const struct field status_reply_fields[] = {
	U64("broker_id", msg_status_reply, broker_id),
	U64("pid", msg_status_reply, pid),
	U64("uptime_ms", msg_status_reply, uptime_ms),
	STR("backend", msg_status_reply, backend),
	STR("device", msg_status_reply, device),
	STR("library", msg_status_reply, library),
	STR("carrier", msg_status_reply, carrier),
	U32("nccl", msg_status_reply, nccl),
	U32("lead", msg_status_reply, lead),
	U64("epoch", msg_status_reply, epoch),
	U64("slot_bytes", msg_status_reply, slot_bytes),
	U64("slots", msg_status_reply, slots),
	U64("updates", msg_status_reply, updates),
	U64("aborted", msg_status_reply, aborted),
	U64("plans", msg_status_reply, plans),
	STRUCTS("groups", msg_status_reply, groups, ngroups, LIMIT_GROUPS, status_group),
	STRUCTS("trainers", msg_status_reply, trainers, ntrainers, LIMIT_MODELS, status_trainer),
	STRUCTS("brokers", msg_status_reply, brokers, nbrokers, LIMIT_BROKERS, status_broker),
	STRUCTS("bounces", msg_status_reply, bounces, nbounces, LIMIT_RINGS, status_bounce),
};
TABLE(status_reply);

static const struct field progress_fields[] = {
	STR("model", progress, model),
	STR("stage", progress, stage),
	U64("version", progress, version),
	U64("committed", progress, committed),
	U64("done", progress, done),
	U64("total", progress, total),
	STR("awaited", progress, awaited),
	RANGE("outcome", progress, outcome, STREW_OUTCOME_NONE, STREW_OUTCOME_LOST),
	STR("text", progress, text),
};
TABLE(progress);

static const struct field progress_reply_fields[] = {
	STRUCTS("models", msg_progress_reply, models, nmodels, LIMIT_MODELS, progress),
};
TABLE(progress_reply);

static const struct field events_fields[] = {U64("after", msg_events, after)};
TABLE(events);

static const struct field event_fields[] = {
	U64("number", msg_event, number),
	U64("last", msg_event, last),
	U64("unix_ms", msg_event, unix_ms),
	STR("model", msg_event, model),
	STR("ended_in", msg_event, ended_in),
	U64("version", msg_event, report.version),
	RANGE("outcome", msg_event, report.outcome, STREW_OUTCOME_NONE, STREW_OUTCOME_LOST),
	STR("text", msg_event, report.text),
	U64("tensors", msg_event, report.tensors),
	U64("unwanted", msg_event, report.unwanted),
	U64("bytes", msg_event, report.bytes),
	U64("wire_bytes", msg_event, report.wire_bytes),
	U64("wait_ns", msg_event, report.wait_ns),
	U64("accept_ns", msg_event, report.accept_ns),
	U64("move_ns", msg_event, report.move_ns),
	U64("commit_ns", msg_event, report.commit_ns),
	U64("total_ns", msg_event, report.total_ns),
	U64("gather_ns", msg_event, report.stages.gather_ns),
	U64("local_ns", msg_event, report.stages.local_ns),
	U64("wire_ns", msg_event, report.stages.wire_ns),
	U64("scatter_ns", msg_event, report.stages.scatter_ns),
	STRUCTS("groups", msg_event, report.groups, report.ngroups, LIMIT_REPORT_GROUPS, outcome),
};
TABLE(event);

static const struct field explain_fields[] = {
	STR("name", msg_explain, name),
	STR("model", msg_explain, model),
	U64("from", msg_explain, from),
};
TABLE(explain);

static const struct field explained_row_fields[] = {
	RANGE("kind", explained, kind, EXPLAINED_HELD, EXPLAINED_SLOT),
	STR("model", explained, model),
	STR("tensor", explained, tensor),
	U32("dtype", explained, dtype),
	STR("shape", explained, shape),
	STR("start", explained, start),
	STR("extent", explained, extent),
	U64("pid", explained, pid),
	STR("where", explained, where),
	U32("rank", explained, rank),
	U32("replica", explained, replica),
	U32("part", explained, part),
	U32("member", explained, member),
	STR("view", explained, view),
	STR("parameter", explained, parameter),
	U32("parameter_dtype", explained, parameter_dtype),
	STR("parameter_shape", explained, parameter_shape),
	RANGE("cast", explained, cast, 0, 1),
	RANGE("staged", explained, staged, 0, 1),
	RANGE("state", explained, state, 0, STREW_GROUP_LOST),
	U64("version", explained, version),
	RANGE("here", explained, here, 0, 1),
	U32("allocation", explained, allocation),
	U64("offset", explained, offset),
	STR("stride", explained, stride),
	STR("device", explained, device),
	STR("handle", explained, handle),
	STR("route", explained, route),
	STR("bounce", explained, bounce),
	U64("worker", explained, worker),
	U64("bucket", explained, bucket),
	U64("sum", explained, sum),
	U32("fold", explained, fold),
	U32("nodes", explained, nodes),
};
TABLE(explained_row);

static const struct field explained_fields[] = {
	U64("total", msg_explained, total),
	STRUCTS("rows", msg_explained, rows, nrows, LIMIT_EXPLAINED, explained_row),
};
TABLE(explained);

static const struct field layout_fields[] = {
	U64("after", msg_layout, after),
	RANGE("trainers", msg_layout, trainers, 0, 1),
};
TABLE(layout);

static const struct field laid_out_fields[] = {
	U64("worker", msg_laid_out, worker),
	STR("model", msg_laid_out, model),
	U32("replica", msg_laid_out, replica),
	U32("part", msg_laid_out, part),
	U32("member", msg_laid_out, member),
	RANGE("partial", msg_laid_out, partial, 0, 1),
	U64("pid", msg_laid_out, pid),
	RANGE("state", msg_laid_out, state, 0, STREW_GROUP_LOST),
	U64("version", msg_laid_out, version),
	U32("parts", msg_laid_out, parts),
	U64("bytes", msg_laid_out, bytes),
	U64("hash", msg_laid_out, hash),
	LIST("twins", FIELD_U64_LIST, msg_laid_out, twins, ntwins, LIMIT_ALLOCATIONS),
};
TABLE(laid_out);

static const struct field read_fields[] = {
	U64("worker", msg_read, worker),
	U64("offset", msg_read, offset),
	U64("bytes", msg_read, bytes),
	U32("allocation", msg_read, allocation),
};
TABLE(read);

static const struct field read_out_fields[] = {
	RANGE("state", msg_read_out, state, 0, STREW_GROUP_LOST),
	U64("version", msg_read_out, version),
};
TABLE(read_out);

static const struct field join_fields[] = {
	U32("protocol", msg_join, protocol),
	U64("broker_id", msg_join, broker_id),
	U64("host_id", msg_join, host_id),
	BYTES("uuid", msg_join, uuid),
	STR("backend", msg_join, backend),
	U32("nccl", msg_join, nccl),
	U64("slot_bytes", msg_join, slot_bytes),
	STR("name", msg_join, name),
};
TABLE(join);

static const struct field joined_fields[] = {U64("broker_id", msg_joined, broker_id)};
TABLE(joined);

static const struct field nonce_fields[] = {BYTES("nonce", msg_nonce, nonce)};
TABLE(nonce);

static const struct field epoch_fields[] = {
	U64("epoch", msg_epoch, epoch),
	RANGE("rank", msg_epoch, rank, 0, LIMIT_BROKERS - 1),
	RANGE("ranks", msg_epoch, ranks, 1, LIMIT_BROKERS),
	RANGE("carrier", msg_epoch, carrier, CARRIER_NONE, CARRIER_NCCL),
	U64("slot_bytes", msg_epoch, slot_bytes),
	BYTES("unique_id", msg_epoch, unique_id),
	BYTES("token", msg_epoch, token),
	LIST("brokers", FIELD_U64_LIST, msg_epoch, brokers, nbrokers, LIMIT_BROKERS),
};
TABLE(epoch);

static const struct field epoch_ready_fields[] = {
	U64("epoch", msg_epoch_ready, epoch),
	U32("code", msg_epoch_ready, code),
	STR("text", msg_epoch_ready, text),
};
TABLE(epoch_ready);

static const struct field manifest_fields[] = {
	STR("model", msg_manifest, model),
	U32("parts", msg_manifest, parts),
	U64("bytes", msg_manifest, bytes),
	U64("hash", msg_manifest, hash),
	LIST("roots", FIELD_U64_LIST, msg_manifest, roots, nroots, LIMIT_RANKS),
	U64("committed", msg_manifest, committed),
};
TABLE(manifest);

static const struct field chosen_fields[] = {
	STR("model", msg_chosen, model),
	U64("manifest_hash", msg_chosen, manifest_hash),
	RANGE("subset", msg_chosen, subset, 1, LIMIT_SUBSETS),
	U64("hash", msg_chosen, hash),
	BLOB("tensors", msg_chosen, tensors, ntensors),
};
TABLE(chosen);

static const struct field begin_fields[] = {
	U64("epoch", msg_begin, epoch),
	U64("update", msg_begin, update),
	STR("model", msg_begin, model),
	U64("version", msg_begin, version),
	U64("manifest_hash", msg_begin, manifest_hash),
	U64("slot_bytes", msg_begin, slot_bytes),
	U32("flags", msg_begin, flags),
	U32("timeout_ms", msg_begin, timeout_ms),
	LIST("roots", FIELD_U32_LIST, msg_begin, roots, nroots, LIMIT_RANKS),
	RANGE("subset", msg_begin, subset, 0, LIMIT_SUBSETS),
	U64("base", msg_begin, base),
};
TABLE(begin);

static const struct field groups_fields[] = {
	U64("epoch", msg_groups, epoch),
	U64("update", msg_groups, update),
	STRUCTS("groups", msg_groups, groups, ngroups, LIMIT_REPORT_GROUPS, outcome),
	U32("code", msg_groups, code),
	STR("text", msg_groups, text),
	U64("unwanted", msg_groups, unwanted),
	U64("gather_ns", msg_groups, stages.gather_ns),
	U64("local_ns", msg_groups, stages.local_ns),
	U64("wire_ns", msg_groups, stages.wire_ns),
	U64("scatter_ns", msg_groups, stages.scatter_ns),
	LIST("slot_types", FIELD_U32_LIST, msg_groups, slot_types, nslot_types, LIMIT_SLOT_TYPES),
	RANGE("hash", msg_groups, hash, 0, 1),
	LIST("hashes", FIELD_U64_LIST, msg_groups, hashes, nhashes, LIMIT_HASHES),
};
TABLE(groups);

static const struct field group_name_fields[] = {
	U32("replica", group_name, replica),
	U32("part", group_name, part),
};
TABLE(group_name);

static const struct field decision_fields[] = {
	U64("epoch", msg_decision, epoch),
	U64("update", msg_decision, update),
	LIST("replicas", FIELD_U32_LIST, msg_decision, replicas, nreplicas, LIMIT_REPORT_GROUPS),
	U32("wire", msg_decision, wire),
	RANGE("hash", msg_decision, hash, 0, 1),
	LIST("slot_types", FIELD_U32_LIST, msg_decision, slot_types, nslot_types, LIMIT_SLOT_TYPES),
	STR("text", msg_decision, text),
	RANGE("part", msg_decision, part, 0, LIMIT_SUBSETS),
	LIST("met", FIELD_U32_LIST, msg_decision, met, nmet, LIMIT_REPORT_GROUPS),
	STRUCTS("own", msg_decision, own, nown, LIMIT_GROUPS, group_name),
};
TABLE(decision);

static const struct field recall_fields[] = {
	STR("model", msg_recall, model),
	U64("update", msg_recall, update),
	U64("version", msg_recall, version),
	RANGE("how", msg_recall, how, RECALL_PREPARED, RECALL_SEEN),
	LIST("brokers", FIELD_U64_LIST, msg_recall, brokers, nbrokers, LIMIT_BROKERS),
	LIST("replicas", FIELD_U32_LIST, msg_recall, replicas, nreplicas, LIMIT_REPORT_GROUPS),
	STRUCTS("own", msg_recall, own, nown, LIMIT_GROUPS, group_name),
};
TABLE(recall);

static const struct field settled_fields[] = {
	STR("model", msg_settled, model),
	U64("update", msg_settled, update),
	U64("version", msg_settled, version),
	RANGE("how", msg_settled, how, RECALL_ABORTED, RECALL_SEEN),
	LIST("replicas", FIELD_U32_LIST, msg_settled, replicas, nreplicas, LIMIT_REPORT_GROUPS),
};
TABLE(settled);

static const struct field data_fields[] = {
	U64("epoch", msg_data, epoch),
	U32("rank", msg_data, rank),
	BYTES("token", msg_data, token),
};
TABLE(data);

static const struct field declare_fields[] = {
	STR("model", msg_declare, model),
	RANGE("rank", msg_declare, rank, 0, LIMIT_RANKS - 1),
	RANGE("ranks", msg_declare, ranks, 1, LIMIT_RANKS),
	U32("parts", msg_declare, parts),
	U64("bytes", msg_declare, bytes),
	U64("hash", msg_declare, hash),
};
TABLE(declare);

static const struct field undeclared_fields[] = {STR("model", msg_undeclared, model)};
TABLE(undeclared);

static const struct field bye_fields[] = {RANGE("again", msg_bye, again, 0, 1)};
TABLE(bye);

static const struct field undeclare_fields[] = {
	STR("model", msg_undeclare, model),
	RANGE("rank", msg_undeclare, rank, 0, LIMIT_RANKS - 1),
	RANGE("released", msg_undeclare, released, 0, 1),
};
TABLE(undeclare);

static const struct field rank_publish_fields[] = {
	STR("model", msg_rank_publish, model),
	RANGE("rank", msg_rank_publish, rank, 0, LIMIT_RANKS - 1),
	U64("version", msg_rank_publish, version),
	U32("flags", msg_rank_publish, flags),
	U32("timeout_ms", msg_rank_publish, timeout_ms),
	RANGE("subset", msg_rank_publish, subset, 0, LIMIT_SUBSETS),
	U64("base", msg_rank_publish, base),
};
TABLE(rank_publish);

static const struct field rank_put_fields[] = {
	STR("model", msg_rank_put, model),
	RANGE("rank", msg_rank_put, rank, 0, LIMIT_RANKS - 1),
	U64("version", msg_rank_put, version),
	RANGE("subset", msg_rank_put, subset, 0, LIMIT_SUBSETS),
};
TABLE(rank_put);

static const struct field rank_cancel_fields[] = {
	STR("model", msg_rank_cancel, model),
	RANGE("rank", msg_rank_cancel, rank, 0, LIMIT_RANKS - 1),
	U64("version", msg_rank_cancel, version),
	STR("text", msg_rank_cancel, text),
};
TABLE(rank_cancel);

static const struct field rank_done_fields[] = {
	STR("model", msg_rank_done, model),
	RANGE("rank", msg_rank_done, rank, 0, LIMIT_RANKS - 1),
	U64("version", msg_rank_done, version),
};
TABLE(rank_done);

static const struct field rank_subset_fields[] = {
	STR("model", msg_rank_subset, model),
	RANGE("rank", msg_rank_subset, rank, 0, LIMIT_RANKS - 1),
	RANGE("subset", msg_rank_subset, subset, 1, LIMIT_SUBSETS),
	BLOB("tensors", msg_rank_subset, tensors, ntensors),
};
TABLE(rank_subset);

static const struct known {
	enum message_type type;
	const char *name;
	const struct table *table;
} known[] = {
	{MSG_HELLO, "hello", &hello},
	{MSG_WELCOME, "welcome", &welcome},
	{MSG_ERROR, "error", &error},
	{MSG_OK, "ok", &ok},
	{MSG_REGISTER, "register", &register_},
	{MSG_ALLOCATION, "allocation", &allocation},
	{MSG_PART, "part", &part},
	{MSG_SEAL, "seal", &seal},
	{MSG_REGISTERED, "registered", &registered},
	{MSG_WITHDRAW, "withdraw", &status},
	{MSG_CHECK, "check", &check},
	{MSG_CHECKED, "checked", &checked},
	{MSG_HOLD, "hold", &hold},
	{MSG_READY, "ready", &ready},
	{MSG_APPLY, "apply", &apply},
	{MSG_APPLIED_ROUTE, "applied_route", &checked},
	{MSG_DONE, "done", &done},
	{MSG_RESUME, "resume", &status},
	{MSG_TRAINER, "trainer", &trainer},
	{MSG_DECLARED, "declared", &declared},
	{MSG_PUBLISH, "publish", &publish},
	{MSG_RELEASED, "released", &released},
	{MSG_REPORT, "report", &report},
	{MSG_SUBSET, "subset", &subset},
	{MSG_PUT, "put", &put},
	{MSG_CANCEL, "cancel", &cancel},
	{MSG_STATUS, "status", &status},
	{MSG_STATUS_REPLY, "status_reply", &status_reply},
	{MSG_PROGRESS, "progress", &status},
	{MSG_PROGRESS_REPLY, "progress_reply", &progress_reply},
	{MSG_EVENTS, "events", &events},
	{MSG_EVENT, "event", &event},
	{MSG_EXPLAIN, "explain", &explain},
	{MSG_EXPLAINED, "explained", &explained},
	{MSG_LAYOUT, "layout", &layout},
	{MSG_LAID_OUT, "laid_out", &laid_out},
	{MSG_READ, "read", &read},
	{MSG_READ_OUT, "read_out", &read_out},
	{MSG_JOIN, "join", &join},
	{MSG_JOINED, "joined", &joined},
	{MSG_EPOCH, "epoch", &epoch},
	{MSG_EPOCH_READY, "epoch_ready", &epoch_ready},
	{MSG_MANIFEST, "manifest", &manifest},
	{MSG_CHOSEN, "chosen", &chosen},
	{MSG_BEGIN, "begin", &begin},
	{MSG_ACCEPT, "accept", &groups},
	{MSG_GO, "go", &decision},
	{MSG_PREPARED, "prepared", &groups},
	{MSG_COMMIT, "commit", &decision},
	{MSG_ABORT, "abort", &decision},
	{MSG_APPLIED, "applied", &groups},
	{MSG_MOVED, "moved", &groups},
	{MSG_UNDECLARED, "undeclared", &undeclared},
	{MSG_BYE, "bye", &bye},
	{MSG_ALIVE, "alive", &status},
	{MSG_NONCE, "nonce", &nonce},
	{MSG_DATA, "data", &data},
	{MSG_DECLARE, "declare", &declare},
	{MSG_UNDECLARE, "undeclare", &undeclare},
	{MSG_RANK_PUBLISH, "rank_publish", &rank_publish},
	{MSG_RANK_DONE, "rank_done", &rank_done},
	{MSG_RANK_SUBSET, "rank_subset", &rank_subset},
	{MSG_RANK_PUT, "rank_put", &rank_put},
	{MSG_RANK_CANCEL, "rank_cancel", &rank_cancel},
	{MSG_SETTLED, "settled", &settled},
	{MSG_RECALL, "recall", &recall},
};

static const struct known *find(unsigned type)
{
	for (size_t i = 0; i < ARRAY_LEN(known); i++) {
		if ((unsigned)known[i].type == type) {
			return &known[i];
		}
	}
	return NULL;
}

const char *message_name(unsigned type)
{
	const struct known *entry = find(type);

	return entry ? entry->name : "unknown";
}

void message_init(struct message *message, enum message_type type, uint64_t serial)
{
	memset(message, 0, sizeof(*message));
	message->type = type;
	message->serial = serial;
	for (size_t i = 0; i < LIMIT_FRAME_FDS; i++) {
		message->fds[i] = -1;
	}
}

void message_close_fds(struct message *message)
{
	while (message->nfds) {
		fd_close(&message->fds[--message->nfds]);
	}
}

void message_finish(struct message *message)
{
	const struct known *entry = find(message->type);

	if (entry && entry->table) {
		schema_finish(entry->table, &message->u);
	}
	message_close_fds(message);
	free(message->owned);
	message->owned = NULL;
}

int message_encode(
	const struct message *message, uint8_t **ret_frame, size_t *ret_len, struct error *err)
{
	const struct known *entry = find(message->type);
	char header[FRAME_HEADER_BYTES] = {0};
	msgpack_sbuffer buffer;
	msgpack_packer packer;
	int rc;

	if (!entry) {
		return error_set(
			err, -ENOTSUP, "message type %d cannot be sent", (int)message->type);
	}
	msgpack_sbuffer_init(&buffer);
	msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
	rc = msgpack_sbuffer_write(&buffer, header, sizeof(header));
	if (rc == 0) {
		rc = schema_encode(&packer, entry->table, &message->u, err);
	}
	if (rc == 0 && buffer.size > LIMIT_FRAME_BYTES) {
		rc = error_set(err, -E2BIG, "message %s has %zu bytes, the limit of a frame is %u",
			entry->name, buffer.size, LIMIT_FRAME_BYTES);
	}
	if (rc) {
		msgpack_sbuffer_destroy(&buffer);
		return rc;
	}
	frame_header_put((uint8_t *)buffer.data,
		&(struct frame_header){.type = (uint16_t)message->type,
			.payload_bytes = (uint32_t)(buffer.size - FRAME_HEADER_BYTES),
			.fds = message->nfds,
			.serial = message->serial});
	*ret_len = buffer.size;
	*ret_frame = (uint8_t *)msgpack_sbuffer_release(&buffer);
	return 0;
}

static int decode_payload(
	const struct known *entry, struct message *message, size_t len, struct error *err)
{
	msgpack_unpacked unpacked;
	size_t value_len, at = 0;
	int rc = scan_value(message->owned, len, &value_len, err);

	if (rc) {
		return rc;
	}
	if (value_len != len) {
		return error_set(err, -EPROTO, "%zu bytes behind its end", len - value_len);
	}
	msgpack_unpacked_init(&unpacked);
	if (msgpack_unpack_next(&unpacked, (const char *)message->owned, len, &at) !=
		MSGPACK_UNPACK_SUCCESS) {
		rc = error_set(err, -EPROTO, "it is no msgpack");
	} else {
		rc = schema_decode(&unpacked.data, entry->table, &message->u, err);
	}
	msgpack_unpacked_destroy(&unpacked);
	return rc;
}

int message_decode(unsigned type, uint64_t serial, uint8_t *payload, size_t len,
	struct message *ret_message, struct error *err)
{
	const struct known *entry = find(type);
	struct message message;
	int rc;

	if (!entry) {
		free(payload);
		return error_set(err, -EPROTO, "message type %u is not known", type);
	}
	message_init(&message, entry->type, serial);
	message.owned = payload;
	rc = decode_payload(entry, &message, len, err);
	if (rc) {
		error_prefix(err, "message %s", entry->name);
		message_finish(&message);
		return rc;
	}
	*ret_message = message;
	return 0;
}
