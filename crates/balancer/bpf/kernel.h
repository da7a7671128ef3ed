/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The little of the kernel's interface that these programs use. Written out here rather than taken from
 * libbpf, so that a build needs clang and the kernel's own headers and nothing else. Helper numbers are
 * part of the kernel's stable interface: enum bpf_func_id in <linux/bpf.h>. */
#ifndef SHOAL_KERNEL_H
#define SHOAL_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define NULL ((void *)0)

/* Keeps clang from reckoning with a pointer before the check for NULL, which the verifier refuses. */
#define AFTER_CHECK(pointer) asm volatile("" : "+r"(pointer))

/* Map definitions as BTF: a number is the length of an array type, a type is what a pointer points to. */
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define PIN_BY_NAME 1

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value,
				   __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static __u32 (*bpf_get_prandom_u32)(void) = (void *)BPF_FUNC_get_prandom_u32;
static __u64 (*bpf_get_socket_cookie)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;
static __u64 (*bpf_get_netns_cookie)(void *ctx) = (void *)BPF_FUNC_get_netns_cookie;
static int (*bpf_set_retval)(int retval) = (void *)BPF_FUNC_set_retval;
static void *(*bpf_sk_storage_get)(void *map, void *sk, void *value,
				   __u64 flags) = (void *)BPF_FUNC_sk_storage_get;
static long (*bpf_sk_storage_delete)(void *map, void *sk) = (void *)BPF_FUNC_sk_storage_delete;
static long (*bpf_skb_pull_data)(struct __sk_buff *skb, __u32 len) = (void *)BPF_FUNC_skb_pull_data;
static long (*bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static __s64 (*bpf_csum_diff)(__be32 *from, __u32 from_size, __be32 *to, __u32 to_size,
			      __wsum seed) = (void *)BPF_FUNC_csum_diff;

static long (*bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len,
				   __u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*bpf_l3_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to,
				   __u64 size) = (void *)BPF_FUNC_l3_csum_replace;
static long (*bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to,
				   __u64 flags) = (void *)BPF_FUNC_l4_csum_replace;
static long (*bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int len,
				  __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

/* Both byte orders that BPF runs on; the argument is a constant. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define be16(x) ((__u16)(((x) & 0xff) << 8 | ((x) >> 8 & 0xff)))
#define be32(x) __builtin_bswap32(x)
#else
#define be16(x) ((__u16)(x))
#define be32(x) ((__u32)(x))
#endif

#endif
