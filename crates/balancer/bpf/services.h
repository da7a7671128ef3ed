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
	__u8 zero;
};

struct set {
	__u64 number;
	__u32 count; /* 0: refuse */
	__u32 zero;
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

#endif
