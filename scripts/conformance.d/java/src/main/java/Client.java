// com.alibaba.nacos:nacos-client, unmodified: gRPC with ability negotiation. See scripts/conformance.py.

import com.alibaba.nacos.api.NacosFactory;
import com.alibaba.nacos.api.naming.NamingService;
import com.alibaba.nacos.api.naming.listener.NamingEvent;
import com.alibaba.nacos.api.naming.pojo.Instance;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.Callable;

public class Client {
    static final String SERVICE = "java-grpc";
    static volatile List<Integer> pushed = List.of();

    static void ok(String step) {
        System.out.println("OK " + step);
        System.out.flush();
    }

    static void until(String step, Callable<Boolean> holds) throws Exception {
        for (int i = 0; i < 1200; i++) {
            try {
                if (holds.call()) {
                    ok(step);
                    return;
                }
            } catch (com.alibaba.nacos.api.exception.NacosException e) {
                // It is not connected yet.
            }
            Thread.sleep(50);
        }
        throw new IllegalStateException("not so: " + step);
    }

    static NamingService connect(String address) throws Exception {
        Properties properties = new Properties();
        properties.put("serverAddr", address);
        properties.put("namespace", "conformance");
        return NacosFactory.createNamingService(properties);
    }

    static List<Integer> ports(List<Instance> all) {
        return all.stream().map(Instance::getPort).sorted().toList();
    }

    static Instance instance(int port, boolean ephemeral) {
        Instance instance = new Instance();
        instance.setIp("127.0.0.1");
        instance.setPort(port);
        instance.setEphemeral(ephemeral);
        instance.addMetadata("k", "v");
        return instance;
    }

    public static void main(String[] args) throws Exception {
        NamingService client = connect(args[0]);
        NamingService other = connect(args[0]);
        client.registerInstance(SERVICE, instance(1001, true));
        ok("register");
        until("list", () -> ports(other.getAllInstances(SERVICE, false)).equals(List.of(1001)));
        other.subscribe(SERVICE, event -> pushed = ports(((NamingEvent) event).getInstances()));
        until("push: how it is", () -> pushed.equals(List.of(1001)));
        NamingService second = connect(args[0]);
        second.registerInstance(SERVICE, instance(1002, true));
        until("push: of another", () -> pushed.equals(List.of(1001, 1002)));
        second.shutDown();
        until("push: it is gone with its connection", () -> pushed.equals(List.of(1001)));
        client.batchRegisterInstance("java-batch", "DEFAULT_GROUP", List.of(instance(2001, true), instance(2002, true)));
        until("list: a batch", () -> ports(other.getAllInstances("java-batch", false)).equals(List.of(2001, 2002)));
        client.registerInstance("java-kept", instance(1, false));
        ok("persist");
        System.out.println("RESTART");
        System.out.flush();
        System.in.read();
        NamingService third = connect(args[0]);
        third.registerInstance(SERVICE, instance(1003, true));
        until("back: by itself, once", () -> ports(third.getAllInstances(SERVICE, false)).equals(List.of(1001, 1003)));
        until("push again", () -> pushed.equals(List.of(1001, 1003)));
        until("back: the batch, too", () -> ports(third.getAllInstances("java-batch", false)).equals(List.of(2001, 2002)));
        until("kept",
            () -> ports(other.getAllInstances("java-kept", false)).equals(List.of(1)));
        client.deregisterInstance("java-kept", instance(1, false));
        client.deregisterInstance(SERVICE, instance(1001, true));
        until("deregister", () -> pushed.equals(List.of(1003)));
        System.exit(0);
    }
}
