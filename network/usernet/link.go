package usernet

import (
	"net"
	"slices"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// link carries Ethernet frames between the guest's network device and the
// stack, one frame a datagram.
type link struct {
	conn   net.Conn
	mtu    uint32
	mac    tcpip.LinkAddress
	done   chan struct{} // closed when reading has ended
	filter *filter

	sent, received counter // by the guest

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
}

var _ stack.LinkEndpoint = (*link)(nil)

// run hands the guest's frames to the stack, until the connection ends. A frame
// that peers returns true for is for other machines; one of the rest, which are the
// gateway's, that take returns true for is not the stack's.
func (l *link) run(peers, take func(frame []byte) bool) {
	defer close(l.done)
	buf := make([]byte, header.EthernetMinimumSize+int(l.mtu))
	for {
		// A longer frame is cut, and dropped later by its length field.
		n, err := l.conn.Read(buf)
		if err != nil {
			return
		}
		frame := buf[:n]
		l.sent.add(n)
		if peers(frame) || !l.filter.allows(frame) || take(frame) {
			continue
		}
		l.deliver(slices.Clone(frame))
	}
}

// deliver gives the stack a frame, which it keeps.
func (l *link) deliver(frame []byte) {
	l.mu.RLock()
	d := l.dispatcher
	l.mu.RUnlock()
	if d == nil {
		return
	}
	eth := header.Ethernet(frame)
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	defer pkt.DecRef()
	if _, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize); !ok {
		return
	}
	switch dst := eth.DestinationAddress(); {
	case dst == header.EthernetBroadcastAddress:
		pkt.PktType = tcpip.PacketBroadcast
	case header.IsMulticastEthernetAddress(dst):
		pkt.PktType = tcpip.PacketMulticast
	default:
		pkt.PktType = tcpip.PacketHost
	}
	d.DeliverNetworkPacket(eth.Type(), pkt)
}

// WritePackets implements stack.LinkEndpoint. It waits while the guest does not
// take its packets: only that guest's connections wait with it.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range pkts.AsSlice() {
		view := pkt.ToView()
		err := l.write(view.AsSlice())
		view.Release()
		if err != nil {
			return i, &tcpip.ErrClosedForSend{}
		}
	}
	return pkts.Len(), nil
}

// send sends a frame that the stack did not make.
func (l *link) send(frame []byte) { _ = l.write(frame) }

func (l *link) write(frame []byte) error {
	_, err := l.conn.Write(frame)
	if err == nil {
		l.received.add(len(frame))
	}
	return err
}

// AddHeader implements stack.LinkEndpoint.
func (*link) AddHeader(pkt *stack.PacketBuffer) {
	eth := header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize))
	eth.Encode(&header.EthernetFields{
		SrcAddr: pkt.EgressRoute.LocalLinkAddress,
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

// ParseHeader implements stack.LinkEndpoint.
func (*link) ParseHeader(pkt *stack.PacketBuffer) bool {
	_, ok := pkt.LinkHeader().Consume(header.EthernetMinimumSize)
	return ok
}

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

// MTU implements stack.LinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu }

// SetMTU implements stack.LinkEndpoint; the MTU does not change.
func (*link) SetMTU(uint32) {}

// MaxHeaderLength implements stack.LinkEndpoint.
func (*link) MaxHeaderLength() uint16 { return header.EthernetMinimumSize }

// LinkAddress implements stack.LinkEndpoint.
func (l *link) LinkAddress() tcpip.LinkAddress { return l.mac }

// SetLinkAddress implements stack.LinkEndpoint; the address does not change.
func (*link) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint. Checksums of what comes from the
// guest are not checked: it went through memory only, and a guest that sends
// wrong ones deceives itself.
func (*link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}

// ARPHardwareType implements stack.LinkEndpoint.
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// Wait implements stack.LinkEndpoint.
func (l *link) Wait() { <-l.done }

// Close implements stack.LinkEndpoint.
func (l *link) Close() { _ = l.conn.Close() }

// SetOnCloseAction implements stack.LinkEndpoint.
func (*link) SetOnCloseAction(func()) {}
