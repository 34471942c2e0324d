// SPDX-License-Identifier: GPL-2.0
/* The tracepoints, in /sys/kernel/tracing/events/virtio_tmem/. */
#define CREATE_TRACE_POINTS
#include "events.h"

void tmem_trace_put(u32 pool, u64 object, u64 index, u32 pages)
{
	trace_tmem_put(pool, object, index, pages);
}

void tmem_trace_refused(u32 pool, u64 object, u64 index, u32 pages)
{
	trace_tmem_refused(pool, object, index, pages);
}

void tmem_trace_get(u32 pool, u64 object, u64 index, u32 pages)
{
	trace_tmem_get(pool, object, index, pages);
}

void tmem_trace_lost(u32 pool, u64 object, u64 index, u32 pages)
{
	trace_tmem_lost(pool, object, index, pages);
}

void tmem_trace_flush(u32 pool, u64 object, u64 index, u32 pages)
{
	trace_tmem_flush(pool, object, index, pages);
}

void tmem_trace_request(u32 queue, u32 opcode, u32 count, u32 status)
{
	trace_tmem_request(queue, opcode, count, status);
}

void tmem_trace_response(u32 queue, u32 opcode, u32 count, u32 status)
{
	trace_tmem_response(queue, opcode, count, status);
}
