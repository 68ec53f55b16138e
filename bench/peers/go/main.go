// An HTTP prober with net/http, as a good engineer would write it: see ../README.md.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Patience with one probe, beyond any queueing on a saturated core.
	timeout = 5 * time.Second
	// Bytes of one answer that are read at most.
	answerMax = 4096
)

func fail(why ...any) {
	fmt.Fprintln(os.Stderr, append([]any{"peer-go:"}, why...)...)
	os.Exit(2)
}

func number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		fail("number", text, err)
	}
	return n
}

func probe(client *http.Client, url string) bool {
	response, err := client.Get(url)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(response.Body, answerMax))
	return err == nil && response.StatusCode == http.StatusOK
}

func main() {
	if len(os.Args) < 5 {
		fail("COUNT IN_FLIGHT PATH ADDRESS...")
	}
	count, inFlight, path := number(os.Args[1]), number(os.Args[2]), os.Args[3]
	var urls []string
	for _, address := range os.Args[4:] {
		if _, _, err := net.SplitHostPort(address); err != nil {
			fail("address", address, err)
		}
		urls = append(urls, "http://"+address+path)
	}
	client := &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DisableKeepAlives:  true,
			DisableCompression: true,
			DialContext:        (&net.Dialer{Timeout: timeout}).DialContext,
		},
		// A redirect is an answer, not a way to go.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var next, up atomic.Int64
	var workers sync.WaitGroup
	started := time.Now()
	for range make([]struct{}, inFlight) {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for {
				n := next.Add(1) - 1
				if n >= count {
					return
				}
				if probe(client, urls[n%int64(len(urls))]) {
					up.Add(1)
				}
			}
		}()
	}
	workers.Wait()
	result := map[string]any{"up": up.Load(), "seconds": time.Since(started).Seconds()}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		fail(err)
	}
}
