(* Whiteness and the Kalman gain, for one mode of the bias. Let e_n be the error of the bias, the loads show
   g_n = h e_n + v_n, and the proportional rule answers: e_(n+1) = e_n - eta g_n + w_n, where v is sampling noise and w
   the motion of the optimum, uncorrelated with what came before. With P = Var(e_n) and S = Var(v_n):

   - the observations are white (uncorrelated with all later ones) if and only if eta = h P / (h^2 P + S);
   - that gain, Kalman's, and no other makes the variance of the next error least.

   Random variables are vectors of any space, and covariance is any symmetric bilinear form on it. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Whiteness.
Variables (R : realFieldType) (V : lmodType R) (cov : V -> V -> R).
Hypothesis cov_symmetric : forall x y, cov x y = cov y x.
Hypothesis cov_linear : forall a x y z, cov (a *: x + y) z = a * cov x z + cov y z.

Variables (h eta : R) (e v w : nat -> V) (n : nat).
Definition observation t : V := h *: e t + v t.
Local Notation g := observation.
Hypothesis rule : forall t, e t.+1 = e t - eta *: g t + w t.

Let P := cov (e n) (e n).
Let S := cov (v n) (v n).
Hypothesis noise_now : cov (v n) (e n) = 0.
Hypothesis noise_later : forall l, cov (v (n + l.+1)) (g n) = 0.
Hypothesis motion : forall l, cov (w (n + l)) (g n) = 0.
Hypotheses (h_neq0 : h != 0) (seen_gt0 : 0 < h ^+ 2 * P + S).

Definition kalman_gain : R := h * P / (h ^+ 2 * P + S).

Lemma cov_add x y z : cov (x + y) z = cov x z + cov y z.
Proof. by rewrite -[x]scale1r cov_linear mul1r scale1r. Qed.

Lemma cov_scale a x z : cov (a *: x) z = a * cov x z.
Proof.
have cov0 : cov 0 z = 0 by apply: (addrI (cov 0 z)); rewrite -cov_add !addr0.
by rewrite -[a *: x]addr0 cov_linear cov0 addr0.
Qed.

Lemma cov_error : cov (e n) (g n) = h * P.
Proof. by rewrite cov_symmetric cov_linear noise_now addr0. Qed.

Lemma cov_observation : cov (g n) (g n) = h ^+ 2 * P + S.
Proof.
rewrite {1}/observation cov_linear cov_error [cov (v n) _]cov_symmetric cov_linear.
by rewrite [cov (e n) (v n)]cov_symmetric noise_now mulr0 add0r mulrA.
Qed.

Lemma cov_later_error l :
  cov (e (n + l.+1)) (g n) = (1 - eta * h) ^+ l * (h * P - eta * (h ^+ 2 * P + S)).
Proof.
have next t : cov (e t.+1) (g n) = cov (e t) (g n) - eta * cov (g t) (g n) + cov (w t) (g n).
  by rewrite rule -scaleNr cov_add cov_add cov_scale mulNr.
elim: l => [|l IH].
  by have := motion 0%N; rewrite addn0 addn1 next cov_error cov_observation => ->; rewrite addr0 expr0 mul1r.
rewrite addnS next motion addr0 [cov (g _) _]cov_linear noise_later addr0 IH [_ ^+ l.+1]exprS -mulrA.
by set c := _ ^+ l * _; ring.
Qed.

Theorem lagged_covariance l :
  cov (g (n + l.+1)) (g n) = h * (1 - eta * h) ^+ l * (h * P - eta * (h ^+ 2 * P + S)).
Proof. by rewrite cov_linear noise_later addr0 cov_later_error mulrA. Qed.

(* White at some lag or at all: there is no difference, as the first lag decides. *)
Theorem white_iff_kalman :
  (forall l, cov (g (n + l.+1)) (g n) = 0) <-> eta = kalman_gain.
Proof.
have seen_neq0 : h ^+ 2 * P + S != 0 by rewrite gt_eqF.
split=> [white|gain]; last first.
  have zero : h * P - eta * (h ^+ 2 * P + S) = 0 by rewrite gain divfK ?subrr.
  by move=> l; rewrite lagged_covariance zero mulr0.
have /eqP := white 0%N; rewrite lagged_covariance expr0 mulr1 mulf_eq0 (negPf h_neq0) subr_eq0 => /eqP gain.
by rewrite /kalman_gain gain mulfK.
Qed.

(* The variance of the next error, of which Var(w) is the part that no gain changes. *)
Definition next_variance (gain : R) : R :=
  cov (e n - gain *: g n) (e n - gain *: g n) + cov (w n) (w n).

Lemma next_varianceE gain :
  next_variance gain = next_variance kalman_gain + (h ^+ 2 * P + S) * (gain - kalman_gain) ^+ 2.
Proof.
have expand c : next_variance c = P - 2%:R * c * (h * P) + c ^+ 2 * (h ^+ 2 * P + S) + cov (w n) (w n).
  rewrite /next_variance -scaleNr cov_add cov_scale [cov (e n) _]cov_symmetric [cov (g n) _]cov_symmetric.
  rewrite cov_add cov_scale [X in _ + _ * X]cov_add cov_scale [cov (g n) (e n)]cov_symmetric.
  by rewrite cov_error cov_observation -/P; ring.
have seen_neq0 : h ^+ 2 * P + S != 0 by rewrite gt_eqF.
by rewrite !expand /kalman_gain; field.
Qed.

Theorem kalman_gain_best gain :
  next_variance kalman_gain <= next_variance gain ?= iff (gain == kalman_gain).
Proof.
rewrite [next_variance gain]next_varianceE; split.
  by rewrite ler_addl mulr_ge0 ?sqr_ge0 // ltW.
by rewrite -subr_eq0 opprD addrA subrr sub0r oppr_eq0 mulf_eq0 (gt_eqF seen_gt0) sqrf_eq0 subr_eq0.
Qed.

End Whiteness.
