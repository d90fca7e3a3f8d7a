package dev.loci;

/**
 * The functions of loci.h that an app needs, one to one. Text is UTF-8 in byte[], handles are long. Use Model, Session and Memory instead:
 * they free what they hold.
 */
public final class Native {
    static {
        System.loadLibrary("loci_jni");
    }

    private Native() {}

    public static final int ADD_SPECIAL = 1;
    public static final int PARSE_SPECIAL = 2;
    public static final int FINISH_NONE = 0;
    public static final int FINISH_EOS = 1;
    public static final int FINISH_STOP = 2;
    public static final int FINISH_LENGTH = 3;
    public static final int FINISH_CANCELLED = 4;
    public static final int FINISH_ERROR = 6;
    public static final int CANCELLED = -12;

    public static native byte[] systemInfo();
    public static native byte[] statusName(int status);

    public static native long modelOpen(byte[] path);
    public static native long modelOpenFd(int fd, long offset, long length);
    public static native void modelFree(long model);
    public static native void modelTrim(long model);
    /** Bytes of RAM that a session takes with its context full. */
    public static native long modelEstimate(long model, int contextLength, int threads);
    public static native int[] tokenize(long model, byte[] text, int flags);
    public static native byte[] chat(long model, byte[][] roles, byte[][] contents, boolean addGenerationPrompt);

    public static native long sessionNew(long model, int contextLength, int threads);
    public static native void sessionFree(long session);
    public static native void sessionReset(long session);
    public static native void sessionSetDuty(long session, int percent);
    public static native void sessionTrim(long session);
    public static native long sessionLength(long session);
    /** The whole conversation so far; what is held already is not computed again. */
    public static native void sessionPrompt(long session, byte[] text, int flags, Progress progress);
    /** What sessionSetSampler takes, as the library has it by itself: temperature, topK, topP, minP, repetitionPenalty. */
    public static native float[] samplerDefaults();
    public static native void sessionSetSampler(
        long session, long seed, float temperature, int topK, float topP, float minP, float repetitionPenalty);
    /** stop: texts that end the answer, in UTF-8; may be null. */
    public static native void sessionStart(long session, int maxTokens, byte[][] stop);
    /** The text of the next step, whole UTF-8; finish[0] becomes the reason, FINISH_NONE until the last one. */
    public static native byte[] sessionNext(long session, int[] finish);
    /** Why the last answer ended; FINISH_NONE if it has not, or none has begun. */
    public static native int sessionFinish(long session);
    /** From any thread. */
    public static native void sessionCancel(long session);
    public static native void sessionAttach(long session, long memory);
    public static native void sessionRemember(long session, long memory, byte[] text, byte[] source, Progress progress);

    public static native Passage[] sessionPassages(long session);

    public static native void sessionSave(long session, byte[] path);
    /** Of the memories that were attached, those that are not among these are opened by their paths. */
    public static native long sessionLoad(long model, byte[] path, long[] memories);

    public static native long memoryOpen(long model, byte[] path, boolean create, boolean readOnly);
    public static native void memoryFree(long memory);
    public static native void memoryCommit(long memory);
    public static native long memoryLength(long memory);
}
