/* The broker's own limit, as far as this machine lets a client reach it: librabbitmq, no Python, no
 * validation. Built by the race where gcc and librabbitmq-dev are installed.
 *
 *   client consume HOST PORT USER PASSWORD VHOST QUEUE COUNT
 *   client publish HOST PORT USER PASSWORD VHOST EXCHANGE COUNT SIZE
 *   client fill    the same, with the bodies that are read from standard input, one a line
 *
 * Prints seconds and CPU seconds as JSON. */
#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { PREFETCH = 100, WINDOW = 1000, LINE = 1 << 20 };

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  return at.tv_sec + at.tv_nsec / 1e9;
}

static double cpu(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_utime.tv_sec + used.ru_utime.tv_usec / 1e6 + used.ru_stime.tv_sec +
         used.ru_stime.tv_usec / 1e6;
}

static void must(int holds, const char *what) {
  if (!holds) {
    fprintf(stderr, "client: %s failed\n", what);
    exit(1);
  }
}

static void answered(amqp_connection_state_t connection, const char *what) {
  must(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, what);
}

static void report(double began, double cpu_began) {
  printf("{\"began\": %f, \"ended\": %f, \"cpu_s\": %f}\n", began, now(), cpu() - cpu_began);
}

static void consume(amqp_connection_state_t connection, const char *queue, long count) {
  double began = 0, cpu_began = 0;
  amqp_basic_qos(connection, 1, 0, PREFETCH, 0);
  amqp_basic_consume(connection, 1, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0,
                     amqp_empty_table);
  answered(connection, "basic.consume");
  for (long done = 0; done < count; done++) {
    amqp_envelope_t envelope;
    amqp_maybe_release_buffers(connection);
    amqp_rpc_reply_t reply = amqp_consume_message(connection, &envelope, NULL, 0);
    must(reply.reply_type == AMQP_RESPONSE_NORMAL, "receiving");
    if (!done) {
      began = now();
      cpu_began = cpu();
    }
    must(!amqp_basic_ack(connection, 1, envelope.delivery_tag, 0), "basic.ack");
    amqp_destroy_envelope(&envelope);
  }
  report(began, cpu_began);
}

/* Wait until at most `most` messages are unconfirmed. */
static long confirmed_until(amqp_connection_state_t connection, long sent, long confirmed,
                            long most) {
  while (sent - confirmed > most) {
    amqp_frame_t frame;
    must(!amqp_simple_wait_frame(connection, &frame), "waiting for a confirm");
    if (frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD) {
      amqp_basic_ack_t *ack = frame.payload.method.decoded;
      confirmed = ack->multiple ? (long)ack->delivery_tag : confirmed + 1;
    }
    amqp_maybe_release_buffers(connection);
  }
  return confirmed;
}

static void publish(amqp_connection_state_t connection, const char *exchange, long count,
                    size_t size, int is_given) {
  char *body = malloc(LINE);
  amqp_basic_properties_t properties = {0};
  properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
                      AMQP_BASIC_TYPE_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG;
  properties.content_type = amqp_cstring_bytes("application/json");
  properties.delivery_mode = 2;
  properties.type = amqp_cstring_bytes("ORDER_PLACED");
  memset(body, 'x', LINE);
  amqp_confirm_select(connection, 1);
  answered(connection, "confirm.select");
  double began = now(), cpu_began = cpu();
  long confirmed = 0;
  for (long sent = 0; sent < count; sent++) {
    char id[64];
    snprintf(id, sizeof id, "01990000-0000-7000-8000-%012ld", sent);
    properties.message_id = amqp_cstring_bytes(id);
    if (is_given) {
      must(fgets(body, LINE, stdin) != NULL, "reading a body");
      size = strcspn(body, "\n");
    }
    amqp_bytes_t bytes = {size, body};
    must(!amqp_basic_publish(connection, 1, amqp_cstring_bytes(exchange), amqp_empty_bytes, 1, 0,
                             &properties, bytes),
         "basic.publish");
    if (sent + 1 - confirmed >= WINDOW) confirmed = confirmed_until(connection, sent + 1, confirmed, WINDOW / 2);
  }
  confirmed_until(connection, count, confirmed, 0);
  report(began, cpu_began);
}

int main(int argc, char **argv) {
  must(argc >= 9, "reading the arguments");
  amqp_connection_state_t connection = amqp_new_connection();
  amqp_socket_t *socket = amqp_tcp_socket_new(connection);
  must(socket && !amqp_socket_open(socket, argv[2], atoi(argv[3])), "connecting");
  must(amqp_login(connection, argv[6], 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, argv[4], argv[5])
               .reply_type == AMQP_RESPONSE_NORMAL,
       "logging in");
  amqp_channel_open(connection, 1);
  answered(connection, "channel.open");
  if (!strcmp(argv[1], "consume"))
    consume(connection, argv[7], atol(argv[8]));
  else
    publish(connection, argv[7], atol(argv[8]), argc > 9 ? strtoul(argv[9], NULL, 10) : 300,
            !strcmp(argv[1], "fill"));
  return 0;
}
