// nacos-sdk-go v2, unmodified: gRPC, and HTTP v1 for persistent instances. See scripts/conformance.py.
package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nacos-group/nacos-sdk-go/v2/clients"
	"github.com/nacos-group/nacos-sdk-go/v2/clients/naming_client"
	"github.com/nacos-group/nacos-sdk-go/v2/common/constant"
	"github.com/nacos-group/nacos-sdk-go/v2/model"
	"github.com/nacos-group/nacos-sdk-go/v2/vo"
)

const service = "go-grpc"

func ok(step string) { fmt.Println("OK", step) }

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func until(step string, holds func() bool) {
	for i := 0; i < 1200; i++ {
		if holds() {
			ok(step)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	must(fmt.Errorf("not so: %s", step))
}

func connect(address string) naming_client.INamingClient {
	host, text, _ := strings.Cut(address, ":")
	port, err := strconv.ParseUint(text, 10, 64)
	must(err)
	config := constant.NewClientConfig(constant.WithNamespaceId("conformance"), constant.WithNotLoadCacheAtStart(true),
		constant.WithLogDir("log"), constant.WithCacheDir("cache"), constant.WithLogLevel("error"))
	client, err := clients.NewNamingClient(vo.NacosClientParam{ClientConfig: config,
		ServerConfigs: []constant.ServerConfig{*constant.NewServerConfig(host, port)}})
	must(err)
	return client
}

func ports(all []model.Instance) (ports []uint64) {
	for _, instance := range all {
		ports = append(ports, instance.Port)
	}
	slices.Sort(ports)
	return
}

func main() {
	client, other := connect(os.Args[1]), connect(os.Args[1])
	register := func(client naming_client.INamingClient, service string, port uint64, ephemeral bool) {
		done, err := client.RegisterInstance(vo.RegisterInstanceParam{ServiceName: service, Ip: "127.0.0.1", Port: port,
			Weight: 1, Enable: true, Healthy: true, Ephemeral: ephemeral, Metadata: map[string]string{"k": "v"}})
		must(err)
		if !done {
			must(fmt.Errorf("not registered: %d", port))
		}
	}
	deregister := func(service string, port uint64, ephemeral bool) {
		_, err := client.DeregisterInstance(vo.DeregisterInstanceParam{ServiceName: service, Ip: "127.0.0.1", Port: port,
			Ephemeral: ephemeral})
		must(err)
	}
	var lock sync.Mutex
	var pushed []uint64
	pushedIs := func(want ...uint64) func() bool {
		return func() bool {
			lock.Lock()
			defer lock.Unlock()
			return slices.Equal(pushed, want)
		}
	}
	register(client, service, 1001, true)
	ok("register")
	listBy := func(client naming_client.INamingClient, service string) []uint64 {
		all, err := client.SelectAllInstances(vo.SelectAllInstancesParam{ServiceName: service})
		if err != nil {
			return nil
		}
		return ports(all)
	}
	list := func(service string) []uint64 { return listBy(other, service) }
	subscription := &vo.SubscribeParam{ServiceName: service, SubscribeCallback: func(all []model.Instance, err error) {
		lock.Lock()
		defer lock.Unlock()
		pushed = ports(all)
	}}
	must(other.Subscribe(subscription))
	until("push: how it is", pushedIs(1001))
	until("list", func() bool { return slices.Equal(list(service), []uint64{1001}) })
	second := connect(os.Args[1])
	register(second, service, 1002, true)
	until("push: of another", pushedIs(1001, 1002))
	second.CloseClient()
	until("push: it is gone with its connection", pushedIs(1001))
	register(client, "go-kept", 1, false)
	ok("persist")
	fmt.Println("RESTART")
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	must(err)
	third := connect(os.Args[1])
	register(third, service, 1003, true)
	until("back: by itself, once", func() bool { return slices.Equal(listBy(third, service), []uint64{1001, 1003}) })
	until("push again", pushedIs(1001, 1003))
	until("kept", func() bool { return slices.Equal(list("go-kept"), []uint64{1}) })
	deregister("go-kept", 1, false)
	deregister(service, 1001, true)
	until("deregister", pushedIs(1003))
	must(other.Unsubscribe(subscription))
	ok("deregister: the subscription")
}
