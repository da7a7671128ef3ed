// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Connect-time balancing. The destination of a socket is translated once, when the program connects or
 * sends, and translated back where the program may look at it: recvmsg and getpeername. No packet is
 * touched, there is no NAT and no connection tracking.
 *
 * All eight programs sit at the root of cgroup2 and see every socket of the machine. The cookie of the
 * socket's network namespace says whose it is; an unknown cookie passes untouched. */
#include "services.h"

#define NETWORKS_MAX 16
#define MPTCP 262
#define SOCK_STREAM 1
#define ECONNREFUSED 111

#define RESOLVER be32(0x7f00000b) /* 127.0.0.11 */
#define DOMAIN be16(53)
/* iputils' ping learns its source address by connecting a UDP socket to this port of its destination, and
 * sends nothing there. Refused, it would give up before its first echo: just when somebody looks why a
 * service has no healthy task. */
#define PING_PROBE be16(1025)

struct sandbox {
	__u32 count;
	__u32 networks[NETWORKS_MAX];
	__u16 dns_udp; /* network byte order; 0: none */
	__u16 dns_tcp;
};

struct local_key {
	__u64 cookie;
	struct address address;
};

struct binding_key {
	struct port_key port;
	struct address address;
};

struct flow_key {
	__u64 socket;
	struct target other;
	__u32 zero;
};

struct peer {
	struct target real;
	struct target shown;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u64);
	__type(value, struct sandbox);
} sandboxes SEC(".maps");

/* Entry 0: the cookie of the node's own namespace, or 0. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} node SEC(".maps");

/* Addresses of the node, beside 127/8 and ::1. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct local_key);
	__type(value, __u8);
} locals SEC(".maps");

/* Local addresses at which ports that are BOUND are reached. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct binding_key);
	__type(value, __u8);
} bindings SEC(".maps");

/* Entry 0: the last set number given out. For user space only, so that it outlives the loader. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

/* Unconnected UDP: {socket, VIP, port} -> the backend it has been given, kept while that one is live. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct flow_key);
	__type(value, struct target);
} affinity SEC(".maps");

/* Unconnected UDP: {socket, backend, port} -> what the program had asked for. One map for both address
 * families: an IPv6 socket sends to a mapped address through sendmsg4 and receives through recvmsg6. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct flow_key);
	__type(value, struct target);
} senders SEC(".maps");

/* Connected sockets, TCP and UDP; goes with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, PIN_BY_NAME);
	__type(key, int);
	__type(value, struct peer);
} peers SEC(".maps");

INLINE __u8 protocol_of(struct bpf_sock_addr *ctx)
{
	if (ctx->protocol == UDP)
		return UDP;
	/* A multipath socket's hooks may see the socket itself or its first TCP flow. */
	if (ctx->protocol == TCP || ctx->protocol == MPTCP)
		return TCP;
	return 0; /* ping sockets and the like have no ports */
}

INLINE int is_resolver(const struct target *t)
{
	return t->address.word[3] == RESOLVER && is_v4(&t->address);
}

INLINE int is_local(__u64 cookie, const struct address *a)
{
	struct local_key key = { .cookie = cookie, .address = *a };

	if (is_v4(a)) {
		/* 127/8, and 0.0.0.0, which the kernel takes for 127.0.0.1 */
		if ((a->word[3] & be32(0xff000000)) == be32(0x7f000000) || a->word[3] == 0)
			return 1;
	} else if (a->word[0] == 0 && a->word[1] == 0 && a->word[2] == 0 &&
		   (a->word[3] == be32(1) || a->word[3] == 0)) {
		return 1;
	}
	return bpf_map_lookup_elem(&locals, &key) != NULL;
}

INLINE int is_bound_elsewhere(const struct set *set, const struct port_key *port, const struct address *a)
{
	struct binding_key key = { .port = *port, .address = *a };

	return (set->flags & BOUND) && !bpf_map_lookup_elem(&bindings, &key);
}

/* Does the namespace know this destination? Then the question is filled in. */
INLINE int resolve(struct question *q, const struct sandbox *sandbox, const struct target *dst)
{
	__u32 zero = 0;
	struct set *set;
	__u64 *own;

	if (sandbox) {
		q->service.address = dst->address;
		for (__u32 i = 0; i < NETWORKS_MAX && i < sandbox->count; i++) {
			q->service.vni = sandbox->networks[i];
			if (find(q))
				return 1;
		}
	}
	own = bpf_map_lookup_elem(&node, &zero);
	if (!own || *own == 0 || *own != q->cookie)
		return 0;
	q->is_port = 1;
	q->port.port = dst->port;
	q->port.protocol = q->protocol;
	q->port.version = is_v4(&dst->address) ? 4 : 6;
	set = find(q);
	return set && is_local(q->cookie, &dst->address) && !is_bound_elsewhere(set, &q->port, &dst->address);
}

/* For unconnected UDP: remember the choice and the way back. Written only when new, so that a stream of
 * datagrams costs look-ups alone. 1: the backend was given to it now. */
INLINE int remember_flow(const struct flow_key *flow, const struct target *dst, const struct target *slot,
			  const struct target *chosen)
{
	struct flow_key back = { .socket = flow->socket, .other = *chosen };
	struct target *before = bpf_map_lookup_elem(&affinity, flow);
	struct target shown = *dst;
	int is_new = !before || before->port != slot->port || !same(&before->address, &slot->address);

	if (is_new)
		bpf_map_update_elem(&affinity, flow, slot, BPF_ANY);
	before = bpf_map_lookup_elem(&senders, &back);
	if (!before || before->port != shown.port || !same(&before->address, &shown.address))
		bpf_map_update_elem(&senders, &back, &shown, BPF_ANY);
	return is_new;
}

INLINE void remember_peer(struct bpf_sock_addr *ctx, const struct target *dst, const struct target *chosen)
{
	struct peer fresh = { .real = *chosen, .shown = *dst };
	struct peer *peer;

	if (!ctx->sk)
		return;
	peer = bpf_sk_storage_get(&peers, ctx->sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
	if (peer)
		*peer = fresh;
}

/* A socket that now goes elsewhere must not go on showing what it was connected to before. */
INLINE enum verdict forget_peer(struct bpf_sock_addr *ctx, enum verdict verdict)
{
	if (ctx->sk)
		bpf_sk_storage_delete(&peers, ctx->sk);
	return verdict;
}

/* dst: in: what the program asked for; out, if TRANSLATED: where it really goes. */
INLINE enum verdict translate(struct bpf_sock_addr *ctx, struct target *dst, int connecting)
{
	struct question q = { .protocol = protocol_of(ctx) };
	struct flow_key flow = {};
	struct target slot = {}, before, *kept = NULL, chosen;
	struct sandbox *sandbox;
	enum verdict verdict;
	int by_flow = !connecting, is_new = 1, is_probe;
	__u16 dns;

	if (!q.protocol)
		return PASS;
	q.cookie = bpf_get_netns_cookie(ctx);
	sandbox = bpf_map_lookup_elem(&sandboxes, &q.cookie);
	dns = !sandbox ? 0 : q.protocol == UDP ? sandbox->dns_udp : sandbox->dns_tcp;
	if (dns && is_resolver(dst)) {
		/* Comes before any service. A socket that is connected to the mapped address asks again
		 * with each datagram, then with the port that it was led to. */
		verdict = dst->port == DOMAIN ? TRANSLATED : PASS;
		if (verdict == TRANSLATED)
			dst->port = dns;
		return connecting ? forget_peer(ctx, verdict) : verdict;
	}
	if (!resolve(&q, sandbox, dst))
		return connecting ? forget_peer(ctx, PASS) : PASS;
	if (by_flow) {
		flow.socket = bpf_get_socket_cookie(ctx);
		flow.other = *dst;
		kept = bpf_map_lookup_elem(&affinity, &flow);
		if (kept)
			before = *kept;
	}
	verdict = choose(&q, kept ? &before : NULL, &slot);
	is_probe = connecting && q.protocol == UDP && dst->port == PING_PROBE;
	if (verdict == REFUSED && is_probe)
		verdict = PASS;
	if (verdict == REFUSED && !q.is_port)
		count(&q.service, NULL, REJECTED);
	if (verdict != TRANSLATED)
		return connecting ? forget_peer(ctx, verdict) : verdict;
	chosen = slot;
	if (!chosen.port)
		chosen.port = dst->port;
	if (by_flow)
		is_new = remember_flow(&flow, dst, &slot, &chosen);
	else
		remember_peer(ctx, dst, &chosen);
	if (is_new && !is_probe && !q.is_port)
		count(&q.service, &slot, CONNECTED);
	*dst = chosen;
	return TRANSLATED;
}

/* src: in: who it really is; out, if 1: whom the program knows it as. */
INLINE int translate_back(struct bpf_sock_addr *ctx, struct target *src, int datagram)
{
	struct peer *peer;
	struct target *sender;
	struct flow_key flow = {};

	if (is_resolver(src)) {
		__u64 cookie = bpf_get_netns_cookie(ctx);
		struct sandbox *sandbox = bpf_map_lookup_elem(&sandboxes, &cookie);
		__u8 protocol = protocol_of(ctx);

		if (!sandbox || !src->port || !protocol)
			return 0;
		if (src->port != (protocol == UDP ? sandbox->dns_udp : sandbox->dns_tcp))
			return 0;
		src->port = DOMAIN;
		return 1;
	}
	if (ctx->sk) {
		peer = bpf_sk_storage_get(&peers, ctx->sk, NULL, 0);
		if (peer && peer->real.port == src->port && same(&peer->real.address, &src->address)) {
			*src = peer->shown;
			return 1;
		}
	}
	if (!datagram)
		return 0;
	flow.socket = bpf_get_socket_cookie(ctx);
	flow.other = *src;
	sender = bpf_map_lookup_elem(&senders, &flow);
	if (!sender)
		return 0;
	*src = *sender;
	return 1;
}

INLINE struct target read4(struct bpf_sock_addr *ctx)
{
	struct target t = {};

	t.address.word[2] = MAPPED;
	t.address.word[3] = ctx->user_ip4;
	t.port = (__u16)ctx->user_port;
	return t;
}

INLINE struct target read6(struct bpf_sock_addr *ctx)
{
	struct target t = {};

	t.address.word[0] = ctx->user_ip6[0];
	t.address.word[1] = ctx->user_ip6[1];
	t.address.word[2] = ctx->user_ip6[2];
	t.address.word[3] = ctx->user_ip6[3];
	t.port = (__u16)ctx->user_port;
	return t;
}

INLINE void write4(struct bpf_sock_addr *ctx, const struct target *t)
{
	ctx->user_ip4 = t->address.word[3];
	ctx->user_port = t->port;
}

INLINE void write6(struct bpf_sock_addr *ctx, const struct target *t)
{
	ctx->user_ip6[0] = t->address.word[0];
	ctx->user_ip6[1] = t->address.word[1];
	ctx->user_ip6[2] = t->address.word[2];
	ctx->user_ip6[3] = t->address.word[3];
	ctx->user_port = t->port;
}

INLINE int refuse(void)
{
	bpf_set_retval(-ECONNREFUSED);
	return 0;
}

INLINE int towards4(struct bpf_sock_addr *ctx, int connecting)
{
	struct target dst = read4(ctx);
	enum verdict verdict = translate(ctx, &dst, connecting);

	if (verdict == REFUSED)
		return refuse();
	if (verdict == TRANSLATED) {
		if (!is_v4(&dst.address)) /* an IPv4 socket cannot speak to an IPv6 backend */
			return refuse();
		write4(ctx, &dst);
	}
	return 1;
}

INLINE int towards6(struct bpf_sock_addr *ctx, int connecting)
{
	struct target dst = read6(ctx);
	enum verdict verdict = translate(ctx, &dst, connecting);

	if (verdict == REFUSED)
		return refuse();
	if (verdict == TRANSLATED) {
		/* A datagram to [::1]:port whose backend is IPv4: the kernel cannot turn an IPv6 send into
		 * a mapped one and would answer with the meaningless ENOTSUPP. Connecting works. */
		if (!connecting && is_v4(&dst.address))
			return refuse();
		write6(ctx, &dst);
	}
	return 1;
}

INLINE int back4(struct bpf_sock_addr *ctx, int datagram)
{
	struct target src = read4(ctx);

	if (translate_back(ctx, &src, datagram) && is_v4(&src.address))
		write4(ctx, &src);
	return 1;
}

INLINE int back6(struct bpf_sock_addr *ctx, int datagram)
{
	struct target src = read6(ctx);

	if (translate_back(ctx, &src, datagram))
		write6(ctx, &src);
	return 1;
}

SEC("cgroup/connect4") int shoal_connect4(struct bpf_sock_addr *ctx) { return towards4(ctx, 1); }
SEC("cgroup/connect6") int shoal_connect6(struct bpf_sock_addr *ctx) { return towards6(ctx, 1); }
SEC("cgroup/sendmsg4") int shoal_sendmsg4(struct bpf_sock_addr *ctx) { return towards4(ctx, 0); }
SEC("cgroup/sendmsg6") int shoal_sendmsg6(struct bpf_sock_addr *ctx) { return towards6(ctx, 0); }
SEC("cgroup/recvmsg4") int shoal_recvmsg4(struct bpf_sock_addr *ctx) { return back4(ctx, 1); }
SEC("cgroup/recvmsg6") int shoal_recvmsg6(struct bpf_sock_addr *ctx) { return back6(ctx, 1); }
SEC("cgroup/getpeername4") int shoal_peername4(struct bpf_sock_addr *ctx) { return back4(ctx, 0); }
SEC("cgroup/getpeername6") int shoal_peername6(struct bpf_sock_addr *ctx) { return back6(ctx, 0); }

char LICENSE[] SEC("license") = "Dual BSD/GPL";
