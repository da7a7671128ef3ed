/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who stands behind a VIP or a published port. User space writes, programs only read.
 *
 * A set of backends has a number that is never used again. A change writes the slots of a new set,
 * switches the one entry that names the set, and only then deletes the old set's slots, then its live
 * entries. A reader that misses a slot, or finds that the entry names another set now, starts again.
 *
 * The structures are mirrored in src/layout.rs. A change of any of them is a new LAYOUT there. */
#ifndef SHOAL_SERVICES_H
#define SHOAL_SERVICES_H

#include "kernel.h"

#define ATTEMPTS 4
#define TCP 6
#define UDP 17

/* IPv6, or IPv4-mapped; network byte order. */
struct address {
	__u32 word[4];
};

#define MAPPED be32(0xffff)

INLINE int is_v4(const struct address *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == MAPPED;
}

INLINE int same(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

struct target {
	struct address address;
	__u16 port; /* network byte order; 0 in a service's slot: the port stays as it was */
	__u16 zero;
};

struct service_key {
	__u32 vni;
	struct address address;
};

struct port_key {
	__u16 port; /* network byte order */
	__u8 protocol;
	__u8 version; /* 4 or 6 */
};

#define BY_SOURCE 1 /* equal sources get equal slots */
#define BOUND 2     /* a port that only some local addresses lead to */

struct set {
	__u64 number;
	__u32 count; /* 0: refuse */
	__u32 flags;
};

struct slot_key {
	__u64 set;
	__u32 slot;
	__u32 zero;
};

struct live_key {
	__u64 set;
	struct target target;
	__u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct service_key);
	__type(value, struct set);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct port_key);
	__type(value, struct set);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct slot_key);
	__type(value, struct target);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct live_key);
	__type(value, __u8);
} live SEC(".maps");

/* What is counted, of a VIP, or of one of its backends. The numbers are pinned with the map. */
#define CONNECTED 1 /* new connections that were led to the backend; of UDP: sockets and destinations */
#define BYPASSING 2 /* flows that came past connect and were led to the backend */
#define REJECTED 3  /* connections, and datagrams, that were refused for want of a backend */
#define PINGED 4    /* echoes answered */

struct count_key {
	struct service_key service;
	struct address backend; /* zero where none is concerned */
	__u32 what;
};

/* Written by programs; user space reads, and removes what belongs to nobody any more. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct count_key);
	__type(value, __u64);
} counts SEC(".maps");

/* The number is this processor's own. Atomic all the same: a program may be preempted by another one. A full
 * map costs a count, never a connection. */
INLINE void count(const struct service_key *service, const struct target *backend, __u32 what)
{
	struct count_key key = { .service = *service, .what = what };
	__u64 first = 1, *number;

	if (backend)
		key.backend = backend->address;
	number = bpf_map_lookup_elem(&counts, &key);
	if (!number) {
		if (!bpf_map_update_elem(&counts, &key, &first, BPF_NOEXIST))
			return;
		/* another processor was faster */
		number = bpf_map_lookup_elem(&counts, &key);
	}
	if (number)
		__sync_fetch_and_add(number, 1);
}

enum verdict { PASS, TRANSLATED, REFUSED };

/* What is looked for; kept so that it can be looked up again. */
struct question {
	__u64 cookie; /* whose question it is: what a choice by source goes by */
	__u8 is_port;
	__u8 protocol;
	struct service_key service;
	struct port_key port;
};

INLINE struct set *find(struct question *q)
{
	if (q->is_port)
		return bpf_map_lookup_elem(&ports, &q->port);
	return bpf_map_lookup_elem(&services, &q->service);
}

INLINE int is_live(__u64 number, const struct target *target)
{
	struct live_key key = { .set = number, .target = *target };

	return bpf_map_lookup_elem(&live, &key) != NULL;
}

/* Cookies are numbers in a row (Fibonacci hashing spreads them). */
INLINE __u32 source_of(const struct question *q)
{
	return (q->cookie * 0x9e3779b97f4a7c15ULL) >> 32;
}

/* Picks a backend: the one that was picked before, if it is still one, or any.
 *
 * Elements of a hash map are reused as soon as they are deleted, also under a reader's hands. So what
 * was read counts only if, after reading, the entry still names the set that it was read for. */
INLINE enum verdict choose(struct question *q, const struct target *before,
			    struct target *chosen)
{
	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		struct slot_key key = {};
		struct target *slot;
		enum verdict verdict = REFUSED;
		struct set *set = find(q);
		__u32 count, by_source;

		if (!set)
			return PASS;
		key.set = set->number;
		count = set->count;
		by_source = set->flags & BY_SOURCE;
		if (count) {
			verdict = TRANSLATED;
			if (before && is_live(key.set, before)) {
				*chosen = *before;
			} else {
				key.slot = (by_source ? source_of(q) : bpf_get_prandom_u32()) % count;
				slot = bpf_map_lookup_elem(&slots, &key);
				if (!slot)
					continue;
				AFTER_CHECK(slot);
				*chosen = *slot;
			}
		}
		set = find(q);
		if (set && set->number == key.set)
			return verdict;
	}
	return REFUSED;
}

#endif
