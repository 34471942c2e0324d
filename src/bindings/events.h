/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM virtio_tmem

#if !defined(_TMEM_EVENTS_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TMEM_EVENTS_H

#include <linux/tracepoint.h>

#define tmem_show_pool(pool) \
	__print_symbolic(pool, { 0, "frontswap" }, { 1, "cleancache" })

DECLARE_EVENT_CLASS(tmem_pages,
	TP_PROTO(u32 pool, u64 object, u64 index, u32 pages),
	TP_ARGS(pool, object, index, pages),
	TP_STRUCT__entry(
		__field(u64, object)
		__field(u64, index)
		__field(u32, pool)
		__field(u32, pages)
	),
	TP_fast_assign(
		__entry->object = object;
		__entry->index = index;
		__entry->pool = pool;
		__entry->pages = pages;
	),
	TP_printk("pool=%s object=%llx index=%llu pages=%u",
		  tmem_show_pool(__entry->pool), __entry->object,
		  __entry->index, __entry->pages)
);

/* Pages are on their way to the host. */
DEFINE_EVENT(tmem_pages, tmem_put,
	TP_PROTO(u32 pool, u64 object, u64 index, u32 pages),
	TP_ARGS(pool, object, index, pages));

/* The host, or the guest on its behalf, did not take pages. */
DEFINE_EVENT(tmem_pages, tmem_refused,
	TP_PROTO(u32 pool, u64 object, u64 index, u32 pages),
	TP_ARGS(pool, object, index, pages));

/* Pages were found in the index and are asked for. */
DEFINE_EVENT(tmem_pages, tmem_get,
	TP_PROTO(u32 pool, u64 object, u64 index, u32 pages),
	TP_ARGS(pool, object, index, pages));

/* Pages that the index promised did not come, or not whole. */
DEFINE_EVENT(tmem_pages, tmem_lost,
	TP_PROTO(u32 pool, u64 object, u64 index, u32 pages),
	TP_ARGS(pool, object, index, pages));

/* Pages left the index. */
DEFINE_EVENT(tmem_pages, tmem_flush,
	TP_PROTO(u32 pool, u64 object, u64 index, u32 pages),
	TP_ARGS(pool, object, index, pages));

DECLARE_EVENT_CLASS(tmem_chain,
	TP_PROTO(u32 queue, u32 opcode, u32 count, u32 status),
	TP_ARGS(queue, opcode, count, status),
	TP_STRUCT__entry(
		__field(u32, queue)
		__field(u32, opcode)
		__field(u32, count)
		__field(u32, status)
	),
	TP_fast_assign(
		__entry->queue = queue;
		__entry->opcode = opcode;
		__entry->count = count;
		__entry->status = status;
	),
	TP_printk("queue=%u opcode=%u count=%u status=%u", __entry->queue,
		  __entry->opcode, __entry->count, __entry->status)
);

/* A request went into a virtqueue. */
DEFINE_EVENT(tmem_chain, tmem_request,
	TP_PROTO(u32 queue, u32 opcode, u32 count, u32 status),
	TP_ARGS(queue, opcode, count, status));

/* Its answer came out; status 0: the virtqueue was stopped. */
DEFINE_EVENT(tmem_chain, tmem_response,
	TP_PROTO(u32 queue, u32 opcode, u32 count, u32 status),
	TP_ARGS(queue, opcode, count, status));

/* For Rust, which cannot test a static key without the kernel's build tree. */
void tmem_trace_put(u32 pool, u64 object, u64 index, u32 pages);
void tmem_trace_refused(u32 pool, u64 object, u64 index, u32 pages);
void tmem_trace_get(u32 pool, u64 object, u64 index, u32 pages);
void tmem_trace_lost(u32 pool, u64 object, u64 index, u32 pages);
void tmem_trace_flush(u32 pool, u64 object, u64 index, u32 pages);
void tmem_trace_request(u32 queue, u32 opcode, u32 count, u32 status);
void tmem_trace_response(u32 queue, u32 opcode, u32 count, u32 status);

#endif /* _TMEM_EVENTS_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE events
#include <trace/define_trace.h>
