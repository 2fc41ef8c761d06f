/* What a session must refuse, at once or at the seal, without a leak. */
#include "test_broker_session.h"

/* What one allocation frame says wrongly breaks the protocol at once. */
static void test_allocations_out_of_order(void **state)
{
	static const struct {
		uint32_t index, first_chunk, chunks;
		unsigned fds;
	} wrong[] = {{1, 0, 1, 1}, {UINT32_MAX, 0, 1, 1}, {0, 1, 2, 1}, {0, UINT32_MAX, 2, 1}};
	struct desk *desk = *state;
	struct message message;

	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		fill_as(desk, ROLE_WORKER);
		assert_int_equal(give_allocation(desk, HANDLE_CUDA_VMM, wrong[i].index,
					 wrong[i].first_chunk, wrong[i].chunks, wrong[i].fds),
			-EPROTO);
	}
	/* The second chunk again, the first again, another allocation in between. */
	for (unsigned i = 0; i < 3; i++) {
		fill_as(desk, ROLE_TRAINER);
		assert_int_equal(give_allocation(desk, HANDLE_CUDA_VMM, 0, 0, 6, 2), 0);
		assert_int_equal(give_allocation(desk, HANDLE_CUDA_VMM, 0, 2, 6, 2), 0);
		assert_int_equal(
			give_allocation(desk, HANDLE_CUDA_VMM, i == 2, i == 0 ? 2 : 0, 6, 2),
			-EPROTO);
	}
	/* One more than announced, and the same one twice. */
	fill_as(desk, ROLE_WORKER);
	assert_int_equal(give_memfd(desk, 0), 0);
	assert_int_equal(give_memfd(desk, 1), -EPROTO);
	fill_as(desk, ROLE_WORKER);
	assert_int_equal(give_memfd(desk, 0), 0);
	assert_int_equal(give_memfd(desk, 0), -EPROTO);
	/* Lengths without descriptors, and a descriptor without a length. */
	fill_as(desk, ROLE_WORKER);
	message_init(&message, MSG_ALLOCATION, 2);
	message.u.allocation.kind = HANDLE_MEMFD;
	message.u.allocation.size = SIZE_BYTES;
	message.u.allocation.chunks = 1;
	message.u.allocation.chunk_bytes = calloc(1, sizeof(uint64_t));
	message.u.allocation.nchunk_bytes = 1;
	assert_int_equal(give(desk, &message), -EPROTO);
	fill_as(desk, ROLE_WORKER);
	message_init(&message, MSG_ALLOCATION, 2);
	message.u.allocation.kind = HANDLE_MEMFD;
	message.u.allocation.size = SIZE_BYTES;
	message.u.allocation.chunks = 1;
	message.fds[0] = memfd_create("test", MFD_CLOEXEC);
	message.nfds = 1;
	assert_int_equal(give(desk, &message), -EPROTO);
}

/* The same frame over and over, none of whose chunks ever come: no memory may be left behind. */
static void test_chunks_that_never_come(void **state)
{
	struct desk *desk = *state;
	int rc = 0;

	fill_as(desk, ROLE_WORKER);
	for (unsigned i = 0; i < 8 && rc == 0; i++) {
		rc = give_allocation(desk, HANDLE_CUDA_VMM, 0, 0, LIMIT_CHUNKS, 0);
	}
	if (rc == 0) {
		rc = give_seal(desk, &desk->layout);
	}
	assert_true(rc < 0);
}

static void refuse_at_seal(struct desk *desk, int code, const char *word)
{
	/* The rest comes all the same, and is of no interest. */
	assert_int_equal(desk->session.state, SESSION_FILLING);
	assert_int_equal(give_memfd(desk, 7), 0);
	assert_int_equal(give_blob(desk, PART_MANIFEST, &desk->layout), 0);
	assert_int_equal(give_seal(desk, &desk->layout), code);
	assert_non_null(strstr(desk->err.text, word));
	assert_int_equal(desk->session.state, SESSION_OPEN);
	assert_null(desk->session.worker);
	assert_null(desk->session.holder);
}

static void test_refused_at_the_seal_then_registered(void **state)
{
	struct desk *desk = *state;
	uint8_t *large = calloc(1, LIMIT_PARTS_BYTES - 1);

	assert_non_null(large);
	open_as(desk, ROLE_WORKER);
	assert_int_equal(give_register(desk, LIMIT_ALLOCATIONS + 1), 0);
	refuse_at_seal(desk, -E2BIG, "16384");
	assert_int_equal(give_register(desk, UINT32_MAX), 0);
	refuse_at_seal(desk, -E2BIG, "allocations");
	/* Chunks: too many announced, more than announced. */
	assert_int_equal(give_register(desk, 1), 0);
	assert_int_equal(give_allocation(desk, HANDLE_CUDA_VMM, 0, 0, LIMIT_CHUNKS + 1, 3), 0);
	refuse_at_seal(desk, -E2BIG, "chunks");
	assert_int_equal(give_register(desk, 1), 0);
	assert_int_equal(give_allocation(desk, HANDLE_CUDA_VMM, 0, 0, 2, 3), 0);
	refuse_at_seal(desk, -E2BIG, "more chunks");
	/* Parts: an empty one, and one byte more than the quota. */
	assert_int_equal(give_register(desk, 0), 0);
	assert_int_equal(give_part(desk, PART_LAYOUT, 0, large, LIMIT_PARTS_BYTES - 1), 0);
	assert_int_equal(give_part(desk, PART_LAYOUT, 1, large, 2), 0);
	refuse_at_seal(desk, -E2BIG, "part 1");
	free(large);
	/* After all this the connection still registers. */
	assert_int_equal(give_register(desk, 1), 0);
	seal_as(desk, ROLE_WORKER);
}

static void test_seals_that_do_not_fit(void **state)
{
	struct desk *desk = *state;
	struct message message;

	for (unsigned i = 0; i < 4; i++) {
		fill_as(desk, ROLE_WORKER);
		assert_int_equal(give_memfd(desk, 0), 0);
		assert_int_equal(give_whole_blob(desk, ROLE_WORKER), 0);
		message_init(&message, MSG_SEAL, 3);
		message.u.seal.parts = i == 0 ? 2 : 1;
		message.u.seal.bytes = desk->layout.len + (i == 1);
		message.u.seal.hash = blob_hash(&desk->layout) ^ (i == 2);
		assert_int_equal(give(desk, &message), i < 3 ? -EPROTO : 0);
	}
	/* Before the allocations, before the parts, with parts of the other kind or another number.
	 */
	fill_as(desk, ROLE_WORKER);
	assert_int_equal(give_whole_blob(desk, ROLE_WORKER), 0);
	assert_int_equal(give_right_seal(desk, ROLE_WORKER), -EPROTO);
	fill_as(desk, ROLE_TRAINER);
	assert_int_equal(give_memfd(desk, 0), 0);
	assert_int_equal(give_right_seal(desk, ROLE_TRAINER), -EPROTO);
	fill_as(desk, ROLE_WORKER);
	assert_int_equal(give_whole_blob(desk, ROLE_TRAINER), -EPROTO);
	fill_as(desk, ROLE_TRAINER);
	assert_int_equal(give_blob(desk, PART_LAYOUT, &desk->layout), -EPROTO);
	fill_as(desk, ROLE_WORKER);
	assert_int_equal(
		give_part(desk, PART_LAYOUT, 1, desk->layout.bytes, desk->layout.len), -EPROTO);
}

/* Gives a blob under its own hash. */
static int register_blob(struct desk *desk, enum role role, const struct blob *blob)
{
	int rc;

	fill_as(desk, role);
	assert_int_equal(give_memfd(desk, 0), 0);
	rc = give_blob(desk, role == ROLE_WORKER ? PART_LAYOUT : PART_DECLARATION, blob);
	return rc ? rc : give_seal(desk, blob);
}

static void test_lying_blobs(void **state)
{
	struct desk *desk = *state;
	struct blob blob;

	/* A parameter without a piece is not for those who did not say `partial`. */
	make_layout(&blob, 2);
	assert_int_equal(register_blob(desk, ROLE_WORKER, &blob), -EINVAL);
	assert_non_null(strstr(desk->err.text, "p1"));
	assert_int_equal(desk->session.state, SESSION_OPEN);
	blob_finish(&blob);
	/* One kind of blob in the place of the other. */
	assert_true(register_blob(desk, ROLE_WORKER, &desk->declaration) < 0);
	assert_true(register_blob(desk, ROLE_TRAINER, &desk->layout) < 0);
	/* Every byte changed in a few ways, and every length: refused or read, never worse. */
	for (unsigned role = ROLE_WORKER; role <= ROLE_TRAINER; role++) {
		const struct blob *whole = role == ROLE_WORKER ? &desk->layout : &desk->declaration;

		blob = *whole;
		blob.bytes = malloc(whole->len);
		assert_non_null(blob.bytes);
		for (size_t i = 0; i < whole->len; i++) {
			static const uint8_t flips[] = {0x01, 0x0f, 0x80, 0xff};

			for (size_t k = 0; k < sizeof(flips); k++) {
				memcpy(blob.bytes, whole->bytes, whole->len);
				blob.bytes[i] ^= flips[k];
				blob.len = whole->len;
				register_blob(desk, (enum role)role, &blob);
			}
			memcpy(blob.bytes, whole->bytes, whole->len);
			blob.len = i + 1;
			assert_true((register_blob(desk, (enum role)role, &blob) == 0) ==
				    (blob.len == whole->len));
		}
		free(blob.bytes);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_allocations_out_of_order),
		CASE(test_chunks_that_never_come),
		CASE(test_refused_at_the_seal_then_registered),
		CASE(test_seals_that_do_not_fit),
		CASE(test_lying_blobs),
	};

	return TEST_RUN(tests);
}
