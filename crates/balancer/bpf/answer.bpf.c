// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Answers for VIPs, on the host side of a sandbox's veth: no interface holds a VIP, so nobody else would
 * answer ARP, neighbour solicitation and ping. The frame is turned round and sent back where it came from.
 *
 * The network is the filter's class id (TCA_BPF_CLASSID), which the kernel puts into tc_classid before it
 * runs the program: one loaded program serves every interface. Echoes in fragments are not answered. */
#include "bypass.h"

#define ETH_ARP be16(0x0806)
#define ETH_IP6 be16(0x86dd)
#define ICMP 1
#define ICMP6 58
#define ARP_REQUEST be16(1)
#define ARP_REPLY be16(2)
#define ECHO_REQUEST 8
#define ECHO_REPLY 0
#define ECHO_REQUEST6 128
#define ECHO_REPLY6 129
#define SOLICITATION 135
#define ADVERTISEMENT 136
#define SOLICITED_OVERRIDE be32(0x60000000)
#define SOURCE_LINK 1
#define TARGET_LINK 2

struct arp { /* RFC 826, Ethernet and IPv4 */
	__u16 hardware, protocol;
	__u8 hardware_len, protocol_len;
	__u16 operation;
	__u8 sender[6];
	__u32 sender_ip;
	__u8 target[6];
	__u32 target_ip;
} __attribute__((packed));

struct icmp { /* RFC 792, RFC 4443 */
	__u8 type, code;
	__u16 checksum;
};

struct ip6 { /* RFC 8200 */
	__u32 version_class_flow;
	__u16 payload_len;
	__u8 next, hop_limit;
	struct address from, to;
};

struct discovery { /* RFC 4861 4.3, 4.4, with its one link-layer address option */
	__u8 type, code;
	__u16 checksum;
	__u32 flags;
	struct address target;
	__u8 option, option_words;
	__u8 link[6];
};

INLINE void copy_mac(__u8 *to, const __u8 *from)
{
	for (int i = 0; i < 6; i++)
		to[i] = from[i];
}

INLINE int is_vip(struct __sk_buff *skb, const struct address *address)
{
	struct service_key key = { .vni = skb->tc_classid, .address = *address };

	return bpf_map_lookup_elem(&services, &key) != NULL;
}

INLINE int is_vip4(struct __sk_buff *skb, __u32 address)
{
	struct address mapped = { { 0, 0, MAPPED, address } };

	return is_vip(skb, &mapped);
}

/* RFC 1624: the checksum after one 16-bit word changed. */
INLINE __u16 adjust(__u16 checksum, __u16 from, __u16 to)
{
	__u32 sum = (__u16)~checksum + (__u16)~from + to;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}

INLINE void count_ping(struct __sk_buff *skb, const struct address *vip)
{
	struct service_key key = { .vni = skb->tc_classid, .address = *vip };

	count(&key, NULL, PINGED);
}

INLINE void turn_frame(struct ethernet *eth)
{
	copy_mac(eth->to, eth->from);
	vip_mac(eth->from);
}

INLINE int answer_arp(struct __sk_buff *skb, struct ethernet *eth, void *end)
{
	struct arp *arp = (void *)(eth + 1);
	__u32 vip;

	if ((void *)(arp + 1) > end || arp->operation != ARP_REQUEST || arp->protocol != ETH_IP ||
	    arp->hardware_len != 6 || arp->protocol_len != 4)
		return TC_ACT_OK;
	vip = arp->target_ip;
	if (!is_vip4(skb, vip))
		return TC_ACT_OK;
	arp->operation = ARP_REPLY;
	copy_mac(arp->target, arp->sender);
	arp->target_ip = arp->sender_ip;
	vip_mac(arp->sender);
	arp->sender_ip = vip;
	turn_frame(eth);
	return bpf_redirect(skb->ifindex, 0);
}

INLINE int answer_echo(struct __sk_buff *skb, struct ethernet *eth, void *end)
{
	struct ip *ip = (void *)(eth + 1);
	struct icmp *icmp = (void *)(ip + 1);
	struct address mapped = { { 0, 0, MAPPED, 0 } };
	__u32 vip;

	if ((void *)(icmp + 1) > end || icmp->type != ECHO_REQUEST)
		return TC_ACT_OK;
	vip = ip->to;
	if (!is_vip4(skb, vip))
		return TC_ACT_OK;
	ip->to = ip->from;
	ip->from = vip;
	icmp->type = ECHO_REPLY;
	icmp->checksum = adjust(icmp->checksum, be16(ECHO_REQUEST << 8), be16(ECHO_REPLY << 8));
	turn_frame(eth);
	mapped.word[3] = vip;
	count_ping(skb, &mapped);
	return bpf_redirect(skb->ifindex, 0);
}

INLINE int answer_echo6(struct __sk_buff *skb, struct ethernet *eth, struct ip6 *ip, struct icmp *icmp)
{
	struct address vip = ip->to;

	if (!is_vip(skb, &vip))
		return TC_ACT_OK;
	ip->to = ip->from;
	ip->from = vip;
	icmp->type = ECHO_REPLY6;
	icmp->checksum = adjust(icmp->checksum, be16(ECHO_REQUEST6 << 8), be16(ECHO_REPLY6 << 8));
	turn_frame(eth);
	count_ping(skb, &vip);
	return bpf_redirect(skb->ifindex, 0);
}

INLINE int answer_solicitation(struct __sk_buff *skb, struct ethernet *eth, struct ip6 *ip, void *end)
{
	struct discovery *message = (void *)(ip + 1);
	__u32 pseudo[2] = { be32(sizeof(*message)), be32(ICMP6) };
	struct address vip;
	__s64 sum;

	/* Without its option, or with more, it is none of a neighbour's: duplicate address detection has
	 * no sender and must not be answered. */
	if ((void *)(message + 1) > end || ip->payload_len != be16(sizeof(*message)) || ip->hop_limit != 255 ||
	    message->option != SOURCE_LINK || message->option_words != 1)
		return TC_ACT_OK;
	vip = message->target;
	if (!is_vip(skb, &vip))
		return TC_ACT_OK;
	ip->to = ip->from;
	ip->from = vip;
	message->type = ADVERTISEMENT;
	message->checksum = 0;
	message->flags = SOLICITED_OVERRIDE;
	message->option = TARGET_LINK;
	vip_mac(message->link);
	sum = bpf_csum_diff(NULL, 0, (void *)&ip->from, 2 * sizeof(ip->from), 0);
	sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), sum);
	sum = bpf_csum_diff(NULL, 0, (void *)message, sizeof(*message), sum);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff);
	sum = (sum & 0xffff) + (sum >> 16);
	message->checksum = (__u16)~sum;
	turn_frame(eth);
	return bpf_redirect(skb->ifindex, 0);
}

INLINE int answer_ip6(struct __sk_buff *skb, struct ethernet *eth, void *end)
{
	struct ip6 *ip = (void *)(eth + 1);
	struct icmp *icmp = (void *)(ip + 1);

	if ((void *)(icmp + 1) > end || ip->next != ICMP6 || icmp->code)
		return TC_ACT_OK;
	if (icmp->type == ECHO_REQUEST6)
		return answer_echo6(skb, eth, ip, icmp);
	if (icmp->type == SOLICITATION)
		return answer_solicitation(skb, eth, ip, end);
	return TC_ACT_OK;
}

INLINE int towards_vip(struct __sk_buff *skb, struct ethernet *eth, void *end)
{
	struct ip *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > end || ip->version_words != 0x45 || (ip->fragment & be16(0x3fff)))
		return TC_ACT_OK;
	if (ip->protocol == ICMP)
		return answer_echo(skb, eth, end);
	return bypass(skb, ip, end);
}

/* Ordinary traffic is to leave after a look at its head: pulling data makes the frame ours to write, and so
 * costs a copy where TCP still holds it. */
INLINE int concerns(struct __sk_buff *skb)
{
	struct ethernet *eth = (void *)(long)skb->data;
	struct ip6 *ip6 = (void *)(eth + 1);
	void *end = (void *)(long)skb->data_end;

	if ((void *)(eth + 1) > end)
		return 0;
	if (eth->type == ETH_IP)
		return is_vip_mac(eth->to);
	if (eth->type == ETH_IP6)
		return (void *)(ip6 + 1) > end || ip6->next == ICMP6;
	return eth->type == ETH_ARP;
}

SEC("classifier/answer") int shoal_answer(struct __sk_buff *skb)
{
	__u32 head = sizeof(struct ethernet) + sizeof(struct ip6) + sizeof(struct discovery);
	struct ethernet *eth;
	void *end;

	if (!concerns(skb))
		return TC_ACT_OK;
	/* Headers may lie outside the linear part; what is shorter is pulled as far as it goes. */
	bpf_skb_pull_data(skb, skb->len < head ? skb->len : head);
	eth = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if ((void *)(eth + 1) > end)
		return TC_ACT_OK;
	if (eth->type == ETH_ARP)
		return answer_arp(skb, eth, end);
	if (eth->type == ETH_IP)
		return towards_vip(skb, eth, end);
	return answer_ip6(skb, eth, end);
}

SEC("classifier/back") int shoal_back(struct __sk_buff *skb) { return bypass_back(skb); }

char LICENSE[] SEC("license") = "Dual BSD/GPL";
