// Command netpeer is the container's end of the bench's network rows (package tcp): the
// server, or with the address of one, a number of bytes and one of echoes the client,
// which prints how many nanoseconds the bytes and one echo have taken.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/applevm/applevm/bench/tcp"
)

func main() {
	err := errors.New("usage: netpeer [ADDRESS BYTES ECHOES]")
	switch len(os.Args) {
	case 1:
		err = serve()
	case 4:
		err = call(os.Args[1], os.Args[2], os.Args[3])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "netpeer:", err)
		os.Exit(1)
	}
}

func serve() error {
	l, err := net.Listen("tcp4", ":"+tcp.Port)
	if err != nil {
		return err
	}
	return tcp.Serve(l)
}

func call(addr, size, echoes string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(echoes)
	if err != nil || rounds < 1 {
		return errors.New("the number of echoes is not 1 or more")
	}
	var took [2]time.Duration
	for i, measure := range []func(net.Conn) (time.Duration, error){
		func(c net.Conn) (time.Duration, error) { return tcp.Transfer(c, 's', n) },
		func(c net.Conn) (time.Duration, error) { return tcp.RoundTrip(c, rounds) },
	} {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, tcp.Port), 30*time.Second)
		if err != nil {
			return err
		}
		took[i], err = measure(c)
		_ = c.Close()
		if err != nil {
			return err
		}
	}
	_, err = fmt.Println(took[0].Nanoseconds(), took[1].Nanoseconds())
	return err
}
