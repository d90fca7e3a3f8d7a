package dev.loci;

import java.io.File;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/** What the JNI layer promises. Arguments: MODEL.gguf DIRECTORY. Says nothing and ends with 0. */
public final class BindingTest {
    private static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static String text(byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }

    private static void check(boolean condition, String what) {
        if (!condition) throw new AssertionError(what);
    }

    private static LociException refused(Runnable work) {
        try {
            work.run();
        } catch (LociException e) {
            return e;
        }
        throw new AssertionError("nothing was thrown");
    }

    private static String answer(long session, int tokens) {
        Native.sessionStart(session, tokens, null);
        StringBuilder out = new StringBuilder();
        int[] finish = new int[1];
        while (finish[0] == Native.FINISH_NONE) out.append(text(Native.sessionNext(session, finish)));
        return out.append("|").append(finish[0]).toString();
    }

    public static void main(String[] args) throws Exception {
        check(text(Native.systemInfo()).contains("loci"), "system info");
        LociException missing = refused(() -> Native.modelOpen(utf8("/no/such/file/\u00e9\ud83d\ude00.gguf")));
        // Beyond the first plane: modified UTF-8 would have made two surrogates of it.
        check(missing.getMessage().contains("\u00e9\ud83d\ude00.gguf") && text(Native.statusName(missing.status())).equals("LOCI_IO"), missing.toString());
        refused(() -> Native.modelOpen(null));
        check(refused(() -> Native.sessionNew(12345, 0, 0)).status() == -2, "a handle that is none");

        long model = Native.modelOpen(utf8(args[0]));
        String rendered = text(Native.chat(model, new byte[][] {utf8("user")}, new byte[][] {utf8("h\u00e9\ud83d\ude00")}, true));
        check(rendered.equals("<s>[user]h\u00e9\ud83d\ude00[assistant]"), rendered);
        refused(() -> Native.chat(model, new byte[][] {utf8("user")}, new byte[][] {null}, true));
        int[] tokens = Native.tokenize(model, utf8("the key"), 0);
        check(tokens.length > 0 && Native.tokenize(model, utf8(""), 0).length == 0, Arrays.toString(tokens));
        check(Native.modelEstimate(model, 64, 1) > 0, "estimate");

        long session = Native.sessionNew(model, 128, 2);
        Native.sessionPrompt(session, utf8("the key is"), 0, null);
        String first = answer(session, 12);
        Native.sessionReset(session);
        long[] seen = new long[2];
        Native.sessionPrompt(session, utf8("the key is"), 0, (done, total) -> {
            seen[0] = done;
            seen[1] = total;
            return true;
        });
        check(seen[0] == seen[1] && seen[0] == Native.sessionLength(session), Arrays.toString(seen));
        check(answer(session, 12).equals(first), first);

        // What a callback throws comes out of the call; false is a cancellation; the session goes on.
        Native.sessionReset(session);
        try {
            Native.sessionPrompt(session, utf8("the key is"), 0, (done, total) -> {
                throw new IllegalStateException("mine");
            });
            throw new AssertionError("the callback's exception is lost");
        } catch (IllegalStateException e) {
            check(e.getMessage().equals("mine"), e.toString());
        }
        Native.sessionReset(session);
        Native.sessionPrompt(session, utf8("the key is"), 0, null);
        check(answer(session, 12).equals(first), "after an exception");

        // Rests change no answer.
        check(refused(() -> Native.sessionSetDuty(session, 0)).status() == -1, "a duty of nothing");
        Native.sessionSetDuty(session, 50);
        Native.sessionReset(session);
        Native.sessionPrompt(session, utf8("the key is"), 0, null);
        check(answer(session, 12).equals(first), "with rests");
        Native.sessionSetDuty(session, 100);

        // How tokens are chosen, and what ends an answer.
        float[] usual = Native.samplerDefaults();
        check(usual.length == 5 && usual[0] > 0 && usual[1] >= 1, Arrays.toString(usual));
        Native.sessionSetSampler(session, 7, 0, 0, 1, 0, 1);
        Native.sessionReset(session);
        Native.sessionPrompt(session, utf8("the key is"), 0, null);
        String greedy = answer(session, 12);
        check(!greedy.startsWith("|"), greedy);
        Native.sessionReset(session);
        Native.sessionPrompt(session, utf8("the key is"), 0, null);
        Native.sessionStart(session, 12, new byte[][] {utf8("no such text"), utf8(greedy.substring(0, greedy.offsetByCodePoints(0, 1)))});
        int[] reason = new int[1];
        while (reason[0] == Native.FINISH_NONE) check(Native.sessionNext(session, reason).length == 0, "text before a stop string");
        check(reason[0] == Native.FINISH_STOP && Native.sessionFinish(session) == Native.FINISH_STOP, "finish " + reason[0]);
        refused(() -> Native.sessionStart(session, 12, new byte[][] {null}));
        check(refused(() -> Native.sessionSetSampler(session, 0, -1, 0, 1, 0, 1)).status() == -1, "a temperature below 0");

        // Saved, it goes on.
        byte[] snapshot = utf8(new File(args[1], "java.session").getPath());
        Native.sessionReset(session);
        Native.sessionPrompt(session, utf8("the key is"), 0, null);
        Native.sessionSave(session, snapshot);
        long restored = Native.sessionLoad(model, snapshot, new long[0]);
        check(answer(restored, 12).equals(answer(session, 12)), "the session that was saved");
        Native.sessionFree(restored);
        refused(() -> Native.sessionLoad(model, utf8("/no/such/file"), new long[0]));
        check(refused(() -> Native.sessionLoad(model, snapshot, new long[] {12345})).status() == -2, "a memory that is none");

        // Cancelled from another thread.
        Native.sessionReset(session);
        Native.sessionPrompt(session, utf8("the key is"), 0, null);
        Native.sessionStart(session, 1000000, new byte[0][]);
        int[] finish = new int[1];
        Native.sessionNext(session, finish);
        Thread canceller = new Thread(() -> Native.sessionCancel(session));
        canceller.start();
        canceller.join();
        while (finish[0] == Native.FINISH_NONE) Native.sessionNext(session, finish);
        check(finish[0] == Native.FINISH_CANCELLED, "finish " + finish[0]);

        byte[] path = utf8(new File(args[1], "java.lmem").getPath());
        long memory = Native.memoryOpen(model, path, true, false);
        Native.sessionRemember(session, memory, utf8("the key is under the stone. ".repeat(20)), utf8("notes"), (done, total) -> true);
        Native.memoryCommit(memory);
        long held = Native.memoryLength(memory);
        Native.memoryFree(memory);
        long again = Native.memoryOpen(model, path, false, true);
        check(held > 0 && Native.memoryLength(again) == held, "memory of " + held);
        Native.sessionAttach(session, again);
        Native.sessionPrompt(session, utf8("where is the key?"), 0, null);
        answer(session, 1);
        Passage[] passages = Native.sessionPassages(session);
        check(passages.length > 0, "no passages");
        for (Passage passage : passages)
            check(passage.source.equals("notes") && passage.memory == 0 && passage.firstToken + passage.tokenCount <= held, passage.source);
        Native.sessionTrim(session);
        Native.modelTrim(model);
        Native.memoryFree(again);
        Native.modelFree(model);
        check(answer(session, 5).length() > 1, "the session keeps its model");
        Native.sessionFree(session);
        Native.sessionFree(session);
    }
}
