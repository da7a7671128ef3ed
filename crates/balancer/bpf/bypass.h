/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What reaches a VIP without having passed connect: raw sockets, and a container's own namespaces behind
 * its own NAT, whose cookies nobody knows. Translated per packet on the sandbox's veth, IPv4 TCP and UDP.
 *
 * Only frames to the VIPs' own link-layer address come here, and only once any did are frames towards
 * sandboxes looked at: ordinary traffic pays for neither. Not covered: fragments, ICMP errors, and a sandbox
 * that is the backend of what it forwards. */
#ifndef SHOAL_BYPASS_H
#define SHOAL_BYPASS_H

#include "packets.h"

#define AF_INET 2
#define TCP_SYN 0x02
#define TCP_ACK 0x10

#define IP_AT sizeof(struct ethernet)
#define IP_CHECKSUM_AT (IP_AT + 10)
#define IP_FROM_AT (IP_AT + 12)
#define IP_TO_AT (IP_AT + 16)
#define L4_AT (IP_AT + sizeof(struct ip))
#define TCP_CHECKSUM_AT (L4_AT + 16)
#define UDP_CHECKSUM_AT (L4_AT + 6)

struct segment { /* the head of TCP (RFC 9293); of UDP only the ports */
	__u16 from, to;
	__u32 sequence, acknowledgement;
	__u8 offset, flags;
};

/* The sandbox's side of a flow, and the VIP or the backend at its other end; network byte order. */
struct bypass_key {
	__u32 vni;
	__u32 client;
	__u32 other;
	__u16 client_port;
	__u16 other_port;
	__u32 protocol;
};

/* {client, VIP} -> backend */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct bypass_key);
	__type(value, __u32);
} bypass_to SEC(".maps");

/* {client, backend} -> VIP */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct bypass_key);
	__type(value, __u32);
} bypass_from SEC(".maps");

/* Entry 0: flows so far. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} bypass_count SEC(".maps");

/* VNI -> interface index of its bridge, in the namespace that the programs run in. Written by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u32);
} bridges SEC(".maps");

INLINE void replace_address(struct __sk_buff *skb, __u32 at, __u8 protocol, __u32 from, __u32 to)
{
	if (protocol == TCP)
		bpf_l4_csum_replace(skb, TCP_CHECKSUM_AT, from, to, BPF_F_PSEUDO_HDR | sizeof(to));
	else
		bpf_l4_csum_replace(skb, UDP_CHECKSUM_AT, from, to,
				    BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0 | sizeof(to));
	bpf_l3_csum_replace(skb, IP_CHECKSUM_AT, from, to, sizeof(to));
	bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0);
}

/* A backend for a flow that begins, or whose backend may have gone. */
INLINE enum verdict place(struct bypass_key *key, const __u32 *kept, __u32 *backend)
{
	struct question q = { .cookie = key->client, .service = { .vni = key->vni } };
	struct target before = {}, chosen = {};
	struct bypass_key back = *key;
	enum verdict verdict;
	__u32 vip = key->other, zero = 0;
	__u64 *flows;

	q.service.address.word[2] = MAPPED;
	q.service.address.word[3] = vip;
	before.address.word[2] = MAPPED;
	if (kept)
		before.address.word[3] = *kept;
	verdict = choose(&q, kept ? &before : NULL, &chosen);
	if (verdict == REFUSED)
		count(&q.service, NULL, REJECTED);
	if (verdict != TRANSLATED)
		return verdict;
	*backend = chosen.address.word[3];
	if (kept && *backend == before.address.word[3])
		return TRANSLATED;
	back.other = *backend;
	bpf_map_update_elem(&bypass_to, key, backend, BPF_ANY);
	bpf_map_update_elem(&bypass_from, &back, &vip, BPF_ANY);
	count(&q.service, &chosen, BYPASSING);
	flows = bpf_map_lookup_elem(&bypass_count, &zero);
	if (flows)
		__sync_fetch_and_add(flows, 1);
	return TRANSLATED;
}

/* From the sandbox, towards a VIP's link-layer address. */
INLINE int bypass(struct __sk_buff *skb, struct ip *ip, void *end)
{
	struct segment *segment = (void *)(ip + 1);
	struct bypass_key key = { .vni = skb->tc_classid };
	struct bpf_redir_neigh next = { .nh_family = AF_INET };
	__u32 *kept, *bridge, backend = 0;
	__u8 protocol = ip->protocol;
	int begins = 1;

	if ((protocol != TCP && protocol != UDP) || (void *)&segment->sequence > end)
		return TC_ACT_OK;
	if (protocol == TCP) {
		if ((void *)(segment + 1) > end)
			return TC_ACT_OK;
		begins = (segment->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	}
	key.client = ip->from;
	key.other = ip->to;
	key.client_port = segment->from;
	key.other_port = segment->to;
	key.protocol = protocol;
	kept = bpf_map_lookup_elem(&bypass_to, &key);
	if (begins) {
		enum verdict verdict = place(&key, kept, &backend);

		if (verdict != TRANSLATED)
			return verdict == REFUSED ? TC_ACT_SHOT : TC_ACT_OK;
	} else if (kept) {
		backend = *kept; /* an open connection stays where it is, until the backend ends it */
	} else {
		return TC_ACT_OK;
	}
	bridge = bpf_map_lookup_elem(&bridges, &key.vni);
	if (!bridge)
		return TC_ACT_OK;
	replace_address(skb, IP_TO_AT, protocol, key.other, backend);
	next.ipv4_nh = backend;
	return bpf_redirect_neigh(*bridge, &next, sizeof(next), 0);
}

/* Towards the sandbox: what answers a bypassing flow comes from the VIP again. */
INLINE int bypass_back(struct __sk_buff *skb)
{
	__u32 head = L4_AT + sizeof(struct segment), zero = 0;
	struct bypass_key key = { .vni = skb->tc_classid };
	__u64 *flows = bpf_map_lookup_elem(&bypass_count, &zero);
	struct segment *segment;
	__u32 *vip;
	struct ip *ip;
	void *end;

	if (!flows || !*flows || skb->protocol != ETH_IP)
		return TC_ACT_OK;
	bpf_skb_pull_data(skb, skb->len < head ? skb->len : head);
	ip = (void *)(long)skb->data + IP_AT;
	segment = (void *)(ip + 1);
	end = (void *)(long)skb->data_end;
	if ((void *)&segment->sequence > end || ip->version_words != 0x45 || (ip->fragment & be16(0x3fff)))
		return TC_ACT_OK;
	if (ip->protocol != TCP && ip->protocol != UDP)
		return TC_ACT_OK;
	key.client = ip->to;
	key.other = ip->from;
	key.client_port = segment->to;
	key.other_port = segment->from;
	key.protocol = ip->protocol;
	vip = bpf_map_lookup_elem(&bypass_from, &key);
	if (vip)
		replace_address(skb, IP_FROM_AT, key.protocol, key.other, *vip);
	return TC_ACT_OK;
}

#endif
