/* What update.c, update_publish.c and update_judge.c share. */
#ifndef BROKER_UPDATE_INTERNAL_H
#define BROKER_UPDATE_INTERNAL_H

#include "broker/update.h"

/* In update->put; 0 of everything. */
uint64_t update_put_bit(uint32_t subset);
/* -ESTALE, with a sentence: the version is not above the committed one. */
int update_check_version(uint64_t version, uint64_t committed, struct error *err);
/* Were the streams of all ranks' puts seen done? */
bool update_all_done(const struct update *update);
/* Is that version on its way in parts, and may a rank still say something of it? */
bool update_in_parts(const struct update *update, uint64_t version);

/* A group that finds no place is named in the text: it could not be judged with its replica. */
void update_merge_answer(struct update *update, uint32_t node, const struct msg_groups *answer);
/* After accept and after prepared: who goes on? NULL, or the sentence to abort with. */
const char *update_judge(struct update *update, char text[LIMIT_TEXT_BYTES]);

#endif
