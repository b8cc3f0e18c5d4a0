import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

public class Server {
    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(args[0])), 0);
        server.createContext("/", exchange -> {
            byte[] body = String.format("slot=%s pid=%d generation=%s client=%s\n",
                System.getenv("HANDFAST_SLOT"), ProcessHandle.current().pid(), System.getenv("HANDFAST_GENERATION"),
                exchange.getRemoteAddress().getAddress().getHostAddress()).getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
        // SIGTERM: finish what is open.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> server.stop(2)));
    }
}
