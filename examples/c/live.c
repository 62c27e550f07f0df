/* SPDX-License-Identifier: MPL-2.0 */

/* Upscales a live source and stays in time: live [-p PROPERTY=VALUE]... [SOURCE [SINK]]
 *
 * SOURCE and SINK are written as for gst-launch-1.0. Each -p sets a property of starsr. Ctrl-C ends it. */

#include <glib-unix.h>
#include <gst/gst.h>
#include <stdio.h>
#include <string.h>

#define SOURCE "videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=25/1"
#define SINK "videoconvert ! autovideosink"

typedef struct {
  GstElement *pipeline;
  GMainLoop *loop;
  int status;
} App;

static void on_progress(const GstStructure *s) {
  GstClockTime at = GST_CLOCK_TIME_NONE;
  guint64 evaluations = 0, time = 0, in = 0, out = 0;
  gst_structure_get_clock_time(s, "running-time", &at);
  gst_structure_get(s, "evaluations", G_TYPE_UINT64, &evaluations, "time", G_TYPE_UINT64, &time,
                    "frames-in", G_TYPE_UINT64, &in, "frames-out", G_TYPE_UINT64, &out, NULL);
  g_print("restored from %" GST_TIME_FORMAT ": %" G_GUINT64_FORMAT " evaluations in %" G_GUINT64_FORMAT
          " ms, %" G_GUINT64_FORMAT " frames in, %" G_GUINT64_FORMAT " out\n",
          GST_TIME_ARGS(at), evaluations, time / GST_MSECOND, in, out);
}

static void on_bypass(const GstStructure *s) {
  GstClockTime at = GST_CLOCK_TIME_NONE;
  guint64 frames = 0;
  const gchar *reason = gst_structure_get_string(s, "reason");
  gst_structure_get_clock_time(s, "running-time", &at);
  gst_structure_get_uint64(s, "frames", &frames);
  g_print("left out from %" GST_TIME_FORMAT ": %" G_GUINT64_FORMAT " frames, reason %s\n", GST_TIME_ARGS(at), frames,
          reason ? reason : "unknown");
}

static gboolean on_message(GstBus *bus, GstMessage *message, gpointer data) {
  App *app = data;
  GError *error = NULL;
  (void)bus;
  switch (GST_MESSAGE_TYPE(message)) {
    case GST_MESSAGE_ERROR:
      gst_message_parse_error(message, &error, NULL);
      g_printerr("live: %s: %s\n", GST_MESSAGE_SRC_NAME(message), error->message);
      g_clear_error(&error);
      app->status = 1;
      g_main_loop_quit(app->loop);
      break;
    case GST_MESSAGE_WARNING:
      gst_message_parse_warning(message, &error, NULL);
      g_printerr("warning: %s: %s\n", GST_MESSAGE_SRC_NAME(message), error->message);
      g_clear_error(&error);
      break;
    case GST_MESSAGE_EOS:
      g_main_loop_quit(app->loop);
      break;
    case GST_MESSAGE_LATENCY:
      /* starsr learns its latency from the caps; the sink has to wait for it. */
      gst_bin_recalculate_latency(GST_BIN(app->pipeline));
      break;
    case GST_MESSAGE_ELEMENT:
      if (gst_message_has_name(message, "starsr-progress"))
        on_progress(gst_message_get_structure(message));
      else if (gst_message_has_name(message, "starsr-bypass"))
        on_bypass(gst_message_get_structure(message));
      break;
    default:
      break;
  }
  return G_SOURCE_CONTINUE;
}

/* Lets all frames inside come out; the main loop ends with them. */
static gboolean on_interrupt(gpointer data) {
  App *app = data;
  gst_element_send_event(app->pipeline, gst_event_new_eos());
  return G_SOURCE_REMOVE;
}

/* Makes a part of the pipeline, described by BEFORE and AFTER together; NULL, with a word about it, where that is wrong. */
static GstElement *part(const char *before, const char *after) {
  GError *error = NULL;
  gchar *description = g_strconcat(before, after, NULL);
  GstElement *bin = gst_parse_bin_from_description(description, TRUE, &error);
  if (error) {
    g_printerr("live: %s: %s\n", description, error->message);
    g_clear_error(&error);
    g_clear_pointer(&bin, gst_object_unref);
  }
  g_free(description);
  return bin;
}

/* Sets NAME=VALUE. GObject would only warn of an unknown name, so it is looked up first. */
static gboolean set(GstElement *element, const char *assignment) {
  const char *equals = strchr(assignment, '=');
  gchar *name = g_strndup(assignment, equals ? (gsize)(equals - assignment) : strlen(assignment));
  gboolean known = equals && g_object_class_find_property(G_OBJECT_GET_CLASS(element), name);
  if (known)
    gst_util_set_object_arg(G_OBJECT(element), name, equals + 1);
  else
    g_printerr("live: %s is no property of starsr with a value\n", assignment);
  g_free(name);
  return known;
}

static int run(gchar **properties, const char *source_text, const char *sink_text) {
  App app = {0};
  GstElement *starsr, *source, *sink;
  GstStructure *stats = NULL;
  GstBus *bus;
  gchar *text;
  guint watch, interrupt;

  starsr = gst_element_factory_make("starsr", NULL);
  if (!starsr) {
    g_printerr("live: there is no element starsr; set GST_PLUGIN_PATH to the folder of libgststarsr.so\n");
    return 1;
  }
  /* Late frames help nobody here: windows without time come out as the plain upscale. */
  gst_util_set_object_arg(G_OBJECT(starsr), "overload", "bypass");
  g_object_set(starsr, "window-length", 4, "window-overlap", 1, "processing-latency", 500 * GST_MSECOND, NULL);
  for (; properties && *properties; properties++) {
    if (!set(starsr, *properties)) {
      gst_object_unref(starsr);
      return 2;
    }
  }

  app.pipeline = gst_pipeline_new(NULL);
  gst_bin_add(GST_BIN(app.pipeline), starsr);
  /* Queues give the source, the model and the sink a thread each. */
  source = part(source_text, " ! queue");
  sink = part("queue ! ", sink_text);
  if (!source || !sink) {
    g_clear_pointer(&source, gst_object_unref);
    g_clear_pointer(&sink, gst_object_unref);
    gst_object_unref(app.pipeline);
    return 2;
  }
  gst_bin_add_many(GST_BIN(app.pipeline), source, sink, NULL);
  if (!gst_element_link_many(source, starsr, sink, NULL)) {
    g_printerr("live: source and sink do not fit together\n");
    gst_object_unref(app.pipeline);
    return 1;
  }

  app.loop = g_main_loop_new(NULL, FALSE);
  bus = gst_element_get_bus(app.pipeline);
  watch = gst_bus_add_watch(bus, on_message, &app);
  interrupt = g_unix_signal_add(SIGINT, on_interrupt, &app);
  gst_object_ref(starsr);
  /* A failure to start is told on the bus. */
  gst_element_set_state(app.pipeline, GST_STATE_PLAYING);
  g_main_loop_run(app.loop);

  if (app.status == 0) {
    g_object_get(starsr, "stats", &stats, NULL);
    text = gst_structure_to_string(stats);
    g_print("%s\n", text);
    g_free(text);
    gst_structure_free(stats);
  }

  gst_element_set_state(app.pipeline, GST_STATE_NULL);
  g_source_remove(watch);
  if (g_main_context_find_source_by_id(NULL, interrupt))
    g_source_remove(interrupt);
  gst_object_unref(starsr);
  gst_object_unref(bus);
  gst_object_unref(app.pipeline);
  g_main_loop_unref(app.loop);
  return app.status;
}

int main(int argc, char **argv) {
  gchar **properties = NULL;
  GOptionEntry options[] = {
      {"property", 'p', 0, G_OPTION_ARG_STRING_ARRAY, &properties, "a property of starsr; may be repeated", "NAME=VALUE"},
      {NULL, 0, 0, G_OPTION_ARG_NONE, NULL, NULL, NULL}};
  GOptionContext *context = g_option_context_new("[SOURCE [SINK]]");
  GError *error = NULL;
  int status;

  g_option_context_add_main_entries(context, options, NULL);
  g_option_context_add_group(context, gst_init_get_option_group());
  if (!g_option_context_parse(context, &argc, &argv, &error)) {
    g_printerr("live: %s\n", error->message);
    g_clear_error(&error);
    status = 2;
  } else {
    status = run(properties, argc > 1 ? argv[1] : SOURCE, argc > 2 ? argv[2] : SINK);
  }
  g_strfreev(properties);
  g_option_context_free(context);
  return status;
}
