/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Frames, as far as the tc programs read them. */
#ifndef SHOAL_PACKETS_H
#define SHOAL_PACKETS_H

#include "services.h"

#define TC_ACT_OK 0
#define TC_ACT_SHOT 2
#define ETH_IP be16(0x0800)

/* The kernel's own headers for these drag in libc's, which do not compile for BPF. */
struct ethernet {
	__u8 to[6];
	__u8 from[6];
	__u16 type;
} __attribute__((packed));

struct ip { /* RFC 791 */
	__u8 version_words, tos;
	__u16 len, id, fragment;
	__u8 ttl, protocol;
	__u16 checksum;
	__u32 from, to;
};

/* The one address of all VIPs. Locally administered; no endpoint's is made of this. */
INLINE void vip_mac(__u8 *to)
{
	to[0] = 0x02;
	to[1] = 0x42;
	to[2] = to[3] = to[4] = to[5] = 0xfe;
}

INLINE int is_vip_mac(const __u8 *mac)
{
	return mac[0] == 0x02 && mac[1] == 0x42 && mac[2] == 0xfe && mac[3] == 0xfe && mac[4] == 0xfe &&
	       mac[5] == 0xfe;
}

#endif
